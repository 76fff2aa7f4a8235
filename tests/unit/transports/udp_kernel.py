"""A scripted kernel for the UDP transport, and the tests' actions on it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from typing import Self

import pytest

from wgvsock.addresses import Port, UdpAddress
from wgvsock.transports import udp_sockets
from wgvsock.transports.base import Link
from wgvsock.transports.udp import UdpTransport

REMOTE = UdpAddress("192.0.2.1", Port(51820))
OTHER = UdpAddress("192.0.2.2", Port(51820))
REMOTE6 = UdpAddress("2001:db8::1", Port(51820))


class Kernel:
    """What the fake sockets of one test share."""

    def __init__(self) -> None:
        self.sockets: list[FakeSocket] = []
        self.next_port = 40000
        self.ports_in_use: set[tuple[int, int]] = set()  # (family, port)
        self.families = {socket.AF_INET, socket.AF_INET6}
        self.options = {udp_sockets.UDP_SEGMENT, udp_sockets.UDP_GRO}
        self.forbid_marks = False
        self.sent: list[tuple[object, bytes, int]] = []  # (address, data, segment size or 0)
        self.room = 1 << 30  # calls until a send would block
        self.refuse_runs: int = 0  # errno
        self.refuse_all: int = 0
        self.sources: list[bytes | None] = []  # of what was sent
        self.refuse_sources: int = 0  # errno

    def __call__(self, family: int, kind: int) -> FakeSocket:
        assert kind == socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        if family not in self.families:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        sock = FakeSocket(self, family)
        self.sockets.append(sock)
        return sock

    def marks(self) -> set[object]:
        return {sock.options[socket.SOL_SOCKET, socket.SO_MARK] for sock in self.sockets if not sock.closed}


class FakeSocket:
    """A UDP socket whose readiness is that of a socket pair."""

    def __init__(self, kernel: Kernel, family: int) -> None:
        self.kernel = kernel
        self.family = family
        self.port = 0
        self.options: dict[tuple[int, int], object] = {}
        self.arriving: deque[tuple[bytes, list[tuple[int, int, bytes]], object]] = deque()
        self.near, self.far = socket.socketpair()
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self.near.fileno()

    def close(self) -> None:
        self.closed = True
        self.near.close()
        self.far.close()

    def setsockopt(self, level: int, option: int, value: object) -> None:
        if level == udp_sockets.SOL_UDP and option not in self.kernel.options:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        if option == socket.SO_MARK and level == socket.SOL_SOCKET and self.kernel.forbid_marks:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.options[level, option] = value

    def bind(self, address: tuple[str, int]) -> None:
        host, port = address
        assert not host
        if not port:
            self.kernel.next_port += 1
            port = self.kernel.next_port
        if (self.family, port) in self.kernel.ports_in_use:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.port = port

    def getsockname(self) -> tuple[str, int]:
        return "", self.port

    def arrive(self, data: bytes, source: object, size: int = 0, *, to: str = "", interface: int = 7) -> None:
        ancillary = [(udp_sockets.SOL_UDP, udp_sockets.UDP_GRO, struct.pack("=i", size))] if size else []
        if ":" in to:
            information = socket.inet_pton(socket.AF_INET6, to) + struct.pack("=i", interface)
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, information))
        elif to:
            address = socket.inet_aton(to)
            ancillary.append((socket.IPPROTO_IP, 8, struct.pack("=i", interface) + address + address))
        self.arriving.append((data, ancillary, source))
        self.far.send(b"!")

    def recvmsg_into(
        self, buffers: tuple[memoryview], ancillary_size: int
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        assert ancillary_size >= socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
        if not self.arriving:
            raise BlockingIOError
        data, ancillary, source = self.arriving.popleft()
        self.near.recv(1)
        buffers[0][: len(data)] = data
        return len(data), ancillary, 0, source

    def sendto(self, data: memoryview, address: object) -> int:
        return self._send(bytes(data), address, 0)

    def sendmsg(
        self, data: tuple[memoryview], ancillary: tuple[tuple[int, int, bytes], ...], flags: int, address: object
    ) -> int:
        size, source = 0, None
        for level, kind, value in ancillary:
            match level, kind:
                case udp_sockets.SOL_UDP, udp_sockets.UDP_SEGMENT:
                    (size,) = struct.unpack("=H", value)
                case socket.IPPROTO_IP, 8:
                    assert value[:4] == bytes(4), "no interface: routing decides"
                    source = value[4:8]
                case socket.IPPROTO_IPV6, socket.IPV6_PKTINFO:
                    assert value[16:] == bytes(4)
                    source = value[:16]
                case other:
                    pytest.fail(f"unexpected ancillary data: {other}")
        assert flags == 0
        return self._send(bytes(data[0]), address, size, source)

    def _send(self, data: bytes, address: object, size: int, source: bytes | None = None) -> int:
        if self.kernel.room <= 0:
            raise BlockingIOError
        self.kernel.room -= 1
        refused = self.kernel.refuse_all or (size and self.kernel.refuse_runs)
        if refused:
            raise OSError(refused, os.strerror(refused))
        if source is not None and self.kernel.refuse_sources:
            raise OSError(self.kernel.refuse_sources, os.strerror(self.kernel.refuse_sources))
        self.kernel.sent.append((address, data, size))
        self.kernel.sources.append(source)
        return len(data)


class Received:
    def __init__(self) -> None:
        self.datagrams: list[tuple[Link, list[bytes]]] = []
        self.writable: list[Link] = []
        self.changed = asyncio.Event()

    def on_datagrams(self, link: Link, datagrams: list[memoryview]) -> None:
        self.datagrams.append((link, [bytes(datagram) for datagram in datagrams]))
        self.changed.set()

    def on_writable(self, link: Link) -> None:
        self.writable.append(link)
        self.changed.set()


class FakeRoutes:
    """Routes whose changes and destinations the test determines."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.interface: int | None = 7
        self.drained = asyncio.Event()
        self.asked: list[tuple[str, bytes, int]] = []

    def fileno(self) -> int:
        return self.near.fileno()

    def drain(self) -> None:
        self.near.recv(100)
        self.drained.set()

    def interface_to(self, remote: str, source: bytes, mark: int) -> int | None:
        self.asked.append((remote, source, mark))
        return self.interface

    def close(self) -> None:
        self.near.close()
        self.far.close()


async def started(port: int = 0, *, fwmark: int = 0, routes: FakeRoutes | None = None) -> tuple[UdpTransport, Received]:
    transport, received = UdpTransport(port, fwmark=fwmark, watch_routes=lambda: routes), Received()
    await transport.start(received.on_datagrams, received.on_writable, lambda _: pytest.fail("UDP connects nothing"))
    return transport, received


def put(link: Link | None, *datagrams: bytes) -> None:
    assert link is not None
    for datagram in datagrams:
        room = link.reserve(len(datagram) + 48)
        assert room is not None
        room[: len(datagram)] = datagram
        link.commit(len(datagram))


async def heard(kernel: Kernel, received: Received, remote: UdpAddress, *, to: str, size: int = 0) -> Link:
    """The link of a datagram that arrived at one of this machine's addresses."""
    received.changed.clear()
    v6 = ":" in remote.host
    sockaddr = (remote.host, remote.port, 0, 0) if v6 else (remote.host, remote.port)
    kernel.sockets[v6].arrive(b"xx", sockaddr, size, to=to)
    await received.changed.wait()
    return received.datagrams[-1][0]
