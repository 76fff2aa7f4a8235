"""QEMU and the guest's driver, played by one object on the far end of a socket pair."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from lab.virtio.ring import RingError
from lab.virtio.vhost_user import Backend, Request, VhostUserError

SIZE = 0x10000
OFFSET = 0x1000
"""Where the guest's memory begins in its file."""

GUEST, USER = 0x4000_0000, 0x7F00_0000_0000
"""Addresses of the memory's first byte: the guest's and QEMU's."""

ENTRIES = 8
DESCRIPTORS, AVAILABLE, USED, BUFFERS = 0x100, 0x400, 0x600, 0x1000
NEXT, WRITE = 1, 2
LIMIT = 0x1000
_WAIT = 20  # seconds until a test is given up


class FrontEnd:
    """QEMU with a guest whose memory is one file.

    Args:
        answer: The device's function.
    """

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, OFFSET + SIZE)
        self.memory = memoryview(mmap.mmap(self.file, OFFSET + SIZE))[OFFSET:]
        self.kick_fd, self.call_fd = os.eventfd(0), os.eventfd(0)
        self._files = [self.file, self.kick_fd, self.call_fd]
        self.connection, far = socket.socketpair()
        self.connection.settimeout(_WAIT)
        self.complaints: list[str] = []
        self.error: BaseException | None = None
        self.backend = Backend(far, answer, LIMIT, self.complaints.append)
        self._thread = threading.Thread(target=self._serve, args=(far,))
        self._thread.start()
        self._free, self._added, self._seen = 0, 0, 0

    def _serve(self, far: socket.socket) -> None:
        with far:
            try:
                self.backend.serve()
            except (VhostUserError, RingError, OSError) as error:
                self.error = error

    # -- QEMU ----------------------------------------------------------------------------------------------------------

    def send(self, request: int, payload: bytes = b"", *descriptors: int, flags: int = 1) -> None:
        message = struct.pack("=III", request, flags, len(payload)) + payload
        socket.send_fds(self.connection, [message], list(descriptors))

    def reply(self) -> bytes:
        number, flags, size = struct.unpack("=III", self.connection.recv(12, socket.MSG_WAITALL))
        del number
        assert flags == 1 | 4  # the version, and that it is a reply
        return self.connection.recv(size, socket.MSG_WAITALL)

    def ask(self, request: int, payload: bytes = b"", *descriptors: int) -> bytes:
        self.send(request, payload, *descriptors)
        return self.reply()

    def order(self, request: int, payload: bytes = b"", *descriptors: int) -> None:
        """With NEED_REPLY: complete when this returns."""
        self.send(request, payload, *descriptors, flags=1 | 8)
        assert self.reply() == bytes(8)

    def share_memory(self) -> None:
        regions = struct.pack("=IIQQQQ", 1, 0, GUEST, SIZE, USER, OFFSET)
        self.order(Request.SET_MEM_TABLE, regions, self.file)

    def start(self, *, base: int = 0, enable: bool = True) -> None:
        """As QEMU 11.1 does after the driver's DRIVER_OK."""
        self.order(Request.SET_FEATURES, struct.pack("=Q", 1 << 32 | 1 << 30))
        self.share_memory()
        self.order(Request.SET_VRING_NUM, struct.pack("=II", 0, ENTRIES))
        self.order(Request.SET_VRING_BASE, struct.pack("=II", 0, base))
        places = (USER + DESCRIPTORS, USER + USED, USER + AVAILABLE)
        self.order(Request.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, *places, 0))
        self.order(Request.SET_VRING_KICK, struct.pack("=Q", 0), self.kick_fd)
        self.order(Request.SET_VRING_CALL, struct.pack("=Q", 0), self.call_fd)
        if enable:
            self.enable()

    def enable(self) -> None:
        self.order(Request.SET_VRING_ENABLE, struct.pack("=II", 0, 1))

    def stop(self) -> int:
        _, base = struct.unpack("=II", self.ask(Request.GET_VRING_BASE, struct.pack("=II", 0, 0)))
        return int(base)

    # -- the driver ----------------------------------------------------------------------------------------------------

    def write_descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.memory, DESCRIPTORS + 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self._added % ENTRIES), head)
        self._added += 1
        struct.pack_into("<H", self.memory, AVAILABLE + 2, self._added & 0xFFFF)

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def queue(self, request: bytes, *, room: int = 64) -> None:
        """A request and its room as two chains, as the nsm driver queues them."""
        for data, size, flags in ((request, len(request), 0), (b"", room, WRITE)):
            slot = self._free % ENTRIES
            at = BUFFERS + 0x1000 * slot
            self.memory[at : at + len(data)] = data
            self.write_descriptor(slot, GUEST + at, size, flags)
            self.offer(slot)
            self._free += 1

    def called(self) -> bool:
        ready, _, _ = select.select([self.call_fd], [], [], _WAIT)
        return bool(ready) and bool(os.eventfd_read(self.call_fd))

    def used(self) -> list[tuple[int, int]]:
        """Heads and lengths that have come back since the last time."""
        (index,) = struct.unpack_from("<H", self.memory, USED + 2)
        fresh = range(self._seen, index)
        self._seen = index
        return [struct.unpack_from("<II", self.memory, USED + 4 + 8 * (at % ENTRIES)) for at in fresh]

    def responses(self) -> list[bytes]:
        return [
            bytes(self.memory[BUFFERS + 0x1000 * head :][:length])
            for head, length in self.used()
            if self._flags(head) & WRITE
        ]

    def _flags(self, index: int) -> int:
        return int(struct.unpack_from("<H", self.memory, DESCRIPTORS + 16 * index + 12)[0])

    def request(self, request: bytes, *, room: int = 64) -> bytes:
        self.queue(request, room=room)
        self.kick()
        while not (responses := self.responses()):
            assert self.called()
        (response,) = responses
        return response

    def ended(self) -> BaseException | None:
        """Wait until the device has given up. Returns why."""
        self._thread.join(_WAIT)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.connection.close()
        self._thread.join(_WAIT)
        self.memory = memoryview(b"")  # a mapping holds its file open
        while self._files:
            os.close(self._files.pop())
