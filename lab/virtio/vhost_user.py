"""The back end's half of vhost-user, as far as a device with one split virtqueue and no configuration space needs it.

QEMU is the front end: over a Unix stream socket it passes the guest's memory and two eventfds as file descriptors, and
says where in that memory the queue is (QEMU's documentation, "Vhost-user Protocol"). Everything is in the machine's
byte order. One connection is one life of QEMU.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from lab.nsm.wire import receive_bytes
from lab.virtio.ring import MAX_SIZE, Chain, RingError, Virtqueue, gather

VERSION_1: Final = 1 << 32  # VIRTIO_F_VERSION_1
PROTOCOL_FEATURES: Final = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
MULTIQUEUE: Final = 1 << 0  # VHOST_USER_PROTOCOL_F_MQ: QEMU asks how many queues there are
REPLY_ACK: Final = 1 << 3  # VHOST_USER_PROTOCOL_F_REPLY_ACK

_HEADER: Final = struct.Struct("=III")  # request, flags, size
_NUMBER: Final = struct.Struct("=Q")
_VRING_STATE: Final = struct.Struct("=II")  # index, number
_VRING_ADDRESS: Final = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
_REGIONS: Final = struct.Struct("=II")  # how many, padding
_REGION: Final = struct.Struct("=QQQQ")  # guest address, size, address in QEMU, offset in the file

_PROTOCOL_VERSION: Final = 1
_REPLY: Final = 1 << 2
_NEED_REPLY: Final = 1 << 3
_QUEUE_INDEX: Final = 0xFF
_NO_DESCRIPTOR: Final = 1 << 8

_MAX_PAYLOAD: Final = 4096  # bytes: a full table of regions has 264
_MAX_DESCRIPTORS: Final = 8  # VHOST_MEMORY_BASELINE_NREGIONS


class VhostUserError(Exception):
    """QEMU sent something that the protocol, or this device, does not support."""


class Request(IntEnum):
    """The messages that QEMU sends to such a device."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


_Places = Sequence[tuple[int, memoryview]]
"""Pieces of memory: the address of the first byte, and the bytes."""


class GuestMemory:
    """The guest's memory, mapped from the files that QEMU passed.

    Args:
        guest: Its pieces by the guest's addresses.
        user: The same by QEMU's own.
    """

    def __init__(self, guest: _Places = (), user: _Places = ()) -> None:
        self._guest = guest
        self._user = user

    @classmethod
    def map(cls, payload: bytes, descriptors: Sequence[int]) -> GuestMemory:
        """Parse the payload of SET_MEM_TABLE and the descriptors that came with it.

        Raises:
            VhostUserError: The two do not agree.
        """
        count, _ = _unpack(_REGIONS, payload)
        if count != len(descriptors) or len(payload) < _REGIONS.size + count * _REGION.size:
            raise VhostUserError(f"{count} regions of memory in {len(payload)} bytes with {len(descriptors)} files")
        guest, user = [], []
        for number, descriptor in enumerate(descriptors):
            entry = _REGION.unpack_from(payload, _REGIONS.size + number * _REGION.size)
            guest_address, size, user_address, offset = entry
            try:
                mapped = mmap.mmap(descriptor, offset + size)
            except (OSError, ValueError, OverflowError) as error:
                raise VhostUserError(f"cannot map {size} bytes of the guest's memory: {error}") from None
            data = memoryview(mapped)[offset:]
            guest.append((guest_address, data))
            user.append((user_address, data))
        return cls(guest, user)

    def guest(self, address: int, size: int) -> memoryview:
        """See `lab.virtio.ring.Memory`."""
        return _find(self._guest, address, size)

    def user(self, address: int, size: int) -> memoryview:
        """Return the bytes at an address of QEMU's own, which it uses for the rings.

        Raises:
            RingError: They are not completely in the guest's memory.
        """
        return _find(self._user, address, size)


@dataclass(slots=True)
class _Vring:
    """What QEMU has said about the queue."""

    size: int = 0
    addresses: tuple[int, int, int] | None = None  # descriptors, available, used: QEMU's own addresses
    base: int = 0  # where the queue begins
    kick: int | None = None  # eventfds
    call: int | None = None
    enabled: bool = False
    queue: Virtqueue | None = None

    @property
    def taken(self) -> int:
        """The current or initial position in the queue."""
        return self.queue.taken if self.queue is not None else self.base


@dataclass(slots=True)
class Backend:
    """One device during one connection of QEMU.

    The nsm driver queues a request and the buffer for its response as two chains, and looks for both when it is called.
    So a request consists of everything up to the first chain with a buffer, and the driver is called once for it.

    Args:
        connection: QEMU's.
        answer: Returns a request's response. Called for one after another.
        request_limit: Bytes of a request.
        complain: Takes a line about a request that could not be answered. It gets an empty response.
    """

    connection: socket.socket
    answer: Callable[[bytes], bytes]
    request_limit: int
    complain: Callable[[str], None]
    _memory: GuestMemory = field(default_factory=GuestMemory, init=False)
    _vring: _Vring = field(default_factory=_Vring, init=False)
    _asked: list[Chain] = field(default_factory=list, init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector, init=False)

    def serve(self) -> None:
        """Serve until QEMU closes the connection.

        Raises:
            VhostUserError: QEMU sent something that the protocol does not have.
            RingError: The queue is not well-formed.
            OSError: The connection broke.
        """
        self._selector.register(self.connection, selectors.EVENT_READ)
        try:
            while True:
                ready = {key.fileobj for key, _ in self._selector.select()}
                if self._vring.kick in ready:
                    self._kicked(self._vring.kick)
                if self.connection in ready and not self._obey_next():
                    return
        finally:
            self._stop()
            self._set_call(None)
            self._selector.close()
            self._memory = GuestMemory()

    # -- the queue -----------------------------------------------------------------------------------------------------

    def _kicked(self, kick: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(kick)
        self._run()

    def _run(self) -> None:
        """Answer what is there, which may have been queued before the queue was enabled."""
        if (queue := self._vring.queue) is None or not self._vring.enabled:
            return
        for chain in queue.chains():
            self._asked.append(chain)
            if chain.writable:
                response = self._response()
                for asked in self._asked:
                    queue.finish(asked, asked.answer(response))
                self._asked.clear()
                self._notify()

    def _notify(self) -> None:
        if self._vring.call is not None:
            os.eventfd_write(self._vring.call, 1)

    def _response(self) -> bytes:
        try:
            return self.answer(gather(self._asked, self.request_limit))
        except (RingError, OSError) as error:
            self.complain(f"a request was not answered: {error}")
            return b""

    # -- QEMU's messages -----------------------------------------------------------------------------------------------

    def _obey_next(self) -> bool:
        """Handle one message. False: QEMU closed the connection."""
        head, descriptors, _, _ = socket.recv_fds(self.connection, _HEADER.size, _MAX_DESCRIPTORS)
        try:
            if not head:
                return False
            number, flags, size = _HEADER.unpack(head + self._receive(_HEADER.size - len(head)))
            if size > _MAX_PAYLOAD:
                raise VhostUserError(f"a message of {size} bytes")
            payload = self._receive(size)
            try:
                request = Request(number)
            except ValueError:
                raise VhostUserError(f"message {number} is not for this device") from None
            reply = self._obey(request, payload, descriptors)
        finally:
            for descriptor in descriptors:  # descriptors in use were duplicated or mapped
                os.close(descriptor)
        if reply is None and flags & _NEED_REPLY:
            reply = _NUMBER.pack(0)
        if reply is not None:
            self.connection.sendall(_HEADER.pack(number, _PROTOCOL_VERSION | _REPLY, len(reply)) + reply)
        return True

    def _receive(self, size: int) -> bytes:
        data = receive_bytes(self.connection, size)
        if len(data) < size:
            raise VhostUserError("QEMU closed the connection within a message")
        return data

    def _obey(self, request: Request, payload: bytes, descriptors: Sequence[int]) -> bytes | None:
        """Return the reply's payload, if the message has one."""
        vring = self._vring
        match request:
            case Request.GET_FEATURES:
                return _NUMBER.pack(VERSION_1 | PROTOCOL_FEATURES)
            case Request.GET_PROTOCOL_FEATURES:
                return _NUMBER.pack(MULTIQUEUE | REPLY_ACK)
            case Request.GET_QUEUE_NUM:
                return _NUMBER.pack(1)
            case Request.SET_MEM_TABLE:
                self._memory = GuestMemory.map(payload, descriptors)
                vring.queue = self._place()
            case Request.SET_VRING_NUM:
                vring.size = self._state(payload)
                if not 0 < vring.size <= MAX_SIZE or vring.size & (vring.size - 1):
                    raise VhostUserError(f"a queue of {vring.size} entries")
            case Request.SET_VRING_BASE:
                vring.base = self._state(payload)
            case Request.SET_VRING_ADDR:
                index, _, table, used, available, _ = _unpack(_VRING_ADDRESS, payload)
                self._check_index(index)
                vring.addresses = (table, available, used)
                vring.queue = self._place()
            case Request.SET_VRING_KICK:
                self._set_kick(self._eventfd(payload, descriptors))
            case Request.SET_VRING_CALL:
                self._set_call(self._eventfd(payload, descriptors))
                self._notify()  # the notification of the previous one may be lost
            case Request.GET_VRING_BASE:
                self._state(payload)
                taken = vring.taken
                self._stop()
                return _VRING_STATE.pack(0, taken)
            case Request.SET_VRING_ENABLE:
                vring.enabled = bool(self._state(payload))
                self._run()
            case Request.SET_FEATURES | Request.SET_PROTOCOL_FEATURES | Request.SET_OWNER | Request.SET_VRING_ERR:
                pass
        return None

    def _state(self, payload: bytes) -> int:
        index, number = _unpack(_VRING_STATE, payload)
        self._check_index(index)
        return int(number)

    def _check_index(self, index: int) -> None:
        if index != 0:
            raise VhostUserError(f"there is no queue {index}")

    def _place(self) -> Virtqueue | None:
        """Set the queue up once everything is known about it, at its new position if it has moved."""
        vring = self._vring
        if vring.addresses is None or not vring.size:
            return None
        views = [self._memory.user(*place) for place in zip(vring.addresses, Virtqueue.sizes(vring.size), strict=True)]
        return Virtqueue(self._memory, *views, taken=vring.taken)

    def _eventfd(self, payload: bytes, descriptors: Sequence[int]) -> int | None:
        (number,) = _unpack(_NUMBER, payload)
        self._check_index(number & _QUEUE_INDEX)
        if number & _NO_DESCRIPTOR:
            return None
        if len(descriptors) != 1:
            raise VhostUserError(f"{len(descriptors)} file descriptors instead of one")
        return os.dup(descriptors[0])

    def _set_kick(self, kick: int | None) -> None:
        if self._vring.kick is not None:
            self._selector.unregister(self._vring.kick)
            os.close(self._vring.kick)
        if kick is not None:
            self._selector.register(kick, selectors.EVENT_READ)
        self._vring.kick = kick

    def _set_call(self, call: int | None) -> None:
        if self._vring.call is not None:
            os.close(self._vring.call)
        self._vring.call = call

    def _stop(self) -> None:
        """Stop the queue until it is described again."""
        self._set_kick(None)
        self._vring.queue = self._vring.addresses = None
        self._vring.enabled = False
        self._asked.clear()


def _find(places: _Places, address: int, size: int) -> memoryview:
    for first, data in places:
        begin = address - first
        if begin >= 0 and begin + size <= len(data):
            return data[begin : begin + size]
    raise RingError(f"{size} bytes at {address:#x} are not in the guest's memory")


def _unpack(structure: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) < structure.size:
        raise VhostUserError(f"a payload of {len(payload)} bytes instead of {structure.size}")
    return structure.unpack_from(payload)
