"""A minimal data plane in Python: TUN, cipher and stream, on asyncio or on a bare poll.

    python -m benchmarks.limit.loop asyncio|poll wg0 listen|dial /path/of/a/stream

It does the same as ``pump.c``: no protocol, no peers, no roaming, no replay window, no validation of input, fixed and
public keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wgvsock.devices.base import TunDevice
from wgvsock.devices.tun import open_tun
from wgvsock.framing import MAX_NATIVE_DATAGRAM
from wgvsock.runtime import memory
from wgvsock.virtio_net import HEADER_LENGTH

BATCH: Final = 256 * 1024
"""Bytes per turn, as in wgvsock/tunnel/outbound.py."""

_HEADER: Final = struct.Struct(">IIIQ")
"""The length of the rest, then a transport data message's header."""
_PADDING: Final = 16
_OVERHEAD: Final = 32
_nonce = struct.Struct("<4xQ").pack
_length = struct.Struct(">I").unpack_from
_counter = struct.Struct(">Q").unpack_from
_ip_length = struct.Struct(">H").unpack_from


class Loop(Protocol):
    """The interface of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        """Call back whenever the descriptor is readable."""

    def remove_reader(self, fd: int, /) -> bool:
        """Stop calling back."""

    def add_writer(self, fd: int, callback: Callable[[], None], /) -> None:
        """Call back whenever the descriptor is writable."""

    def remove_writer(self, fd: int, /) -> bool:
        """Stop calling back."""


class PollLoop:
    """Calls back directly from ``poll``, and does nothing else."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}

    def _watch(self, fd: int) -> None:
        events = (select.POLLIN if fd in self._readers else 0) | (select.POLLOUT if fd in self._writers else 0)
        self._poll.register(fd, events)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """See `Loop.add_reader`."""
        self._readers[fd] = callback
        self._watch(fd)

    def remove_reader(self, fd: int) -> bool:
        """See `Loop.remove_reader`."""
        known = self._readers.pop(fd, None) is not None
        self._watch(fd)
        return known

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """See `Loop.add_writer`."""
        self._writers[fd] = callback
        self._watch(fd)

    def remove_writer(self, fd: int) -> bool:
        """See `Loop.remove_writer`."""
        known = self._writers.pop(fd, None) is not None
        self._watch(fd)
        return known

    def turn(self) -> None:
        """Wait once, and call back for every ready descriptor."""
        for fd, events in self._poll.poll():
            if events & ~select.POLLOUT and fd in self._readers:
                self._readers[fd]()
            if events & select.POLLOUT and fd in self._writers:
                self._writers[fd]()

    def run_forever(self) -> None:
        """Run until a callback raises `SystemExit`."""
        while True:
            self.turn()


class Pump:
    """Moves packets both ways until the stream ends.

    Args:
        loop: The event loop.
        tun: A TUN with super-packets.
        stream: A connected, non-blocking stream.
        listening: Which of the two ends this is. Each seals with its own key.
    """

    def __init__(self, loop: Loop, tun: TunDevice, stream: socket.socket, *, listening: bool) -> None:
        self._loop, self._tun, self._stream = loop, tun, stream
        self._tun_number, self._stream_number = tun.fileno(), stream.fileno()
        self._encrypt_into = ChaCha20Poly1305(bytes([listening]) + bytes(31)).encrypt_into
        self._decrypt_into = ChaCha20Poly1305(bytes([not listening]) + bytes(31)).decrypt_into
        self._packet = memoryview(bytearray(MAX_NATIVE_DATAGRAM + _PADDING))
        self._plain = memoryview(bytearray(MAX_NATIVE_DATAGRAM))
        self._out = memoryview(bytearray(2 * BATCH))
        self._in = memoryview(bytearray(BATCH + MAX_NATIVE_DATAGRAM))
        self._held = 0
        self._sent = self._end = 0
        self._sending_counter = 0
        loop.add_reader(self._tun_number, self._tun_readable)
        loop.add_reader(self._stream_number, self._stream_readable)

    def _tun_readable(self) -> None:
        read_into, encrypt_into, packet, out = self._tun.read_into, self._encrypt_into, self._packet, self._out
        end, counter = 0, self._sending_counter
        while end < BATCH:
            length = read_into(packet[:-_PADDING])
            if not length:
                break
            size = (length + 15) & ~15
            packet[length:size] = bytes(size - length)
            _HEADER.pack_into(out, end, size + _OVERHEAD, 4, 0, counter)
            encrypt_into(_nonce(counter), packet[:size], None, out[end + 20 : end + size + 36])
            counter += 1
            end += size + 36
        self._sending_counter, self._sent, self._end = counter, 0, end
        if end and not self._flush():
            self._loop.remove_reader(self._tun_number)
            self._loop.add_writer(self._stream_number, self._stream_writable)

    def _flush(self) -> bool:
        try:
            while self._sent < self._end:
                self._sent += self._stream.send(self._out[self._sent : self._end])
        except BlockingIOError:
            return False
        return True

    def _stream_writable(self) -> None:
        if self._flush():
            self._loop.remove_writer(self._stream_number)
            self._loop.add_reader(self._tun_number, self._tun_readable)

    def _stream_readable(self) -> None:
        buffer, plain, write = self._in, self._plain, self._tun.write
        decrypt_into = self._decrypt_into
        got = self._stream.recv_into(buffer[self._held :])
        if not got:
            sys.exit()
        end, at = self._held + got, 0
        while at + 20 <= end:
            (size,) = _length(buffer, at)
            if at + 4 + size > end:
                break
            (counter,) = _counter(buffer, at + 12)
            length = size - _OVERHEAD
            try:
                decrypt_into(_nonce(counter), buffer[at + 20 : at + 4 + size], None, plain[:length])
            except InvalidTag:
                sys.exit("an invalid frame")
            (real,) = _ip_length(plain, 12) if plain[10] >> 4 == 4 else _ip_length(plain, 14)
            write(plain[: real + (HEADER_LENGTH if plain[10] >> 4 == 4 else HEADER_LENGTH + 40)])
            at += 4 + size
        self._held = end - at
        if at and self._held:
            buffer[: self._held] = buffer[at:end]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit.loop", description=__doc__)
    parser.add_argument("loop", choices=["asyncio", "poll"])
    parser.add_argument("interface")
    parser.add_argument("end", choices=["listen", "dial"])
    parser.add_argument("path", type=Path)
    return parser.parse_args()


def connected(end: str, path: Path) -> socket.socket:
    """Return the stream between the two ends. Prints ``ready`` when the other end can connect."""
    stream = socket.socket(socket.AF_UNIX)
    if end == "dial":
        stream.connect(str(path))
        print("ready", flush=True)
    else:
        with stream as listener:
            listener.bind(str(path))
            listener.listen(1)
            print("ready", flush=True)
            stream, _ = listener.accept()
    stream.setblocking(False)
    return stream


def main() -> None:
    """Carry packets until the stream ends."""
    arguments = parse_arguments()
    tun = open_tun(arguments.interface, packet_headroom=HEADER_LENGTH)
    tun.set_offloads(enabled=True)
    stream = connected(arguments.end, arguments.path)
    loop = asyncio.SelectorEventLoop() if arguments.loop == "asyncio" else PollLoop()
    pump = Pump(loop, tun, stream, listening=arguments.end == "listen")
    memory.settle()
    loop.run_forever()
    del pump


if __name__ == "__main__":
    os.umask(0o077)
    main()
