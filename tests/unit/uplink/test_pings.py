"""Echo requests by the kernel's ping sockets, which a double replaces."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any, ClassVar

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
)
from scapy.packet import Raw

from wgvsock.uplink.pings import MAX_PINGS, Pings

_Socket = socket.socket
GATEWAYS = {4: socket.inet_aton("10.73.0.1"), 6: socket.inet_pton(socket.AF_INET6, "fd73::1")}
BOTH = pytest.mark.parametrize("version", [4, 6])


class PingSocket:
    """Answers what is sent, under its own identifier."""

    made: ClassVar[list[PingSocket]] = []
    refuses: ClassVar[int] = 0

    def __init__(self, family: int, *_: object) -> None:
        self._file = _Socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.family = family
        self.connected: tuple[Any, ...] = ()
        self.sent: list[bytes] = []
        self.options: dict[tuple[int, int], int] = {}
        self.complaints: list[tuple[bytes, list[tuple[int, int, bytes]]]] = []
        self.made.append(self)

    @property
    def hops(self) -> int:
        four = (socket.IPPROTO_IP, socket.IP_TTL)
        return self.options[four if self.family == socket.AF_INET else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)]

    def setsockopt(self, level: int, name: int, value: int) -> None:
        self.options[level, name] = value

    def connect(self, address: tuple[Any, ...]) -> None:
        if self.refuses:
            raise OSError(self.refuses, "refused")
        self.connected = address

    def send(self, data: memoryview) -> None:
        self.sent.append(bytes(data))

    def recv(self, _size: int) -> bytes:
        if not self.sent:
            raise BlockingIOError
        request = self.sent.pop(0)
        reply = {8: b"\x00", 128: b"\x81"}[request[0]]
        return reply + request[1:4] + b"\x77\x77" + request[6:]

    def recvmsg(self, _size: int, _ancillary: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        assert flags == socket.MSG_ERRQUEUE
        if not self.complaints:
            raise BlockingIOError
        return (*self.complaints.pop(0), 0, None)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


@pytest.fixture(autouse=True)
def _sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    PingSocket.made = []
    PingSocket.refuses = 0
    monkeypatch.setattr(socket, "socket", PingSocket)


def request(identifier: int, version: int = 6, *, hops: int = 9, data: bytes = b"ping") -> memoryview:
    if version == 4:
        network = IP(src="10.73.0.2", dst="192.0.2.7", ttl=hops)
        return memoryview(bytes(network / ICMP(type=8, id=identifier, seq=3) / Raw(data)))
    packet = IPv6(src="fd73::2", dst="2001:db8::7", hlim=hops) / ICMPv6EchoRequest(id=identifier, seq=3, data=data)
    return memoryview(bytes(packet))


class Watch:
    """The descriptors that are watched."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.pings = Pings(self.open.add, self.open.remove, GATEWAYS)


def is_whole(packet: Any, layer: Any) -> bool:
    """Whether checksums and lengths are right."""
    rebuilt = packet.copy()
    for part, field in ((layer, "cksum"), (layer, "chksum"), (IP, "chksum"), (IP, "len"), (IPv6, "plen")):
        if part in rebuilt and field in rebuilt[part].fields:
            delattr(rebuilt[part], field)
    return bytes(rebuilt) == bytes(packet)


@BOTH
def test_an_answer_is_the_enclaves_again(version: int) -> None:
    watch = Watch()
    assert watch.pings.send(request(0x1234, version)) is None
    (fd,) = watch.open
    assert fd in watch.pings
    to, source, kind, layer = {
        4: ("192.0.2.7", "10.73.0.2", IP, ICMP),
        6: ("2001:db8::7", "fd73::2", IPv6, ICMPv6EchoReply),
    }[version]
    assert (PingSocket.made[0].connected, PingSocket.made[0].hops) == ((to, 0), 8)
    answer = watch.pings.receive(fd)
    assert answer is not None
    packet = kind(answer)
    assert (packet.src, packet.dst, packet[layer].id, packet[layer].seq) == (to, source, 0x1234, 3)
    assert is_whole(packet, layer)
    assert watch.pings.receive(fd) is None
    watch.pings.close()
    assert watch.open == set()


def complaint(version: int, type_: int, code: int, info: int = 0) -> list[tuple[int, int, bytes]]:
    """As the kernel tells what a router says."""
    said = struct.pack("=IBBBxII", errno.EHOSTUNREACH, 2 if version == 4 else 3, type_, code, info, 0)
    if version == 4:
        return [(socket.IPPROTO_IP, 11, said + struct.pack("=HH4s8x", 2, 0, socket.inet_aton("198.51.100.9")))]
    router = socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    return [(socket.IPPROTO_IPV6, 25, said + struct.pack("=HHI16sI", 10, 0, 0, router, 0))]


def complained(version: int, type_: int, code: int, info: int = 0) -> Any:
    """What the enclave is told of it."""
    watch = Watch()
    watch.pings.send(request(0x1234, version))
    (fd,) = watch.open
    sock = PingSocket.made[-1]
    (sent,) = sock.sent
    sock.complaints.append((sent[:4] + b"\x77\x77" + sent[6:], complaint(version, type_, code, info)))
    told = watch.pings.receive(fd)
    watch.pings.close()
    assert told is not None
    return (IP if version == 4 else IPv6)(told)


def test_what_a_router_says_of_a_request_reaches_the_enclave() -> None:
    packet = complained(4, 11, 0)
    assert (packet.src, packet.dst, packet[ICMP].type) == ("198.51.100.9", "10.73.0.2", 11)
    assert (packet[IPerror].src, packet[IPerror].dst) == ("10.73.0.2", "192.0.2.7")
    assert (packet[ICMPerror].id, packet[ICMPerror].seq) == (0x1234, 3)
    assert is_whole(packet, ICMP)
    packet = complained(6, 3, 0)
    assert (packet.src, packet.dst) == ("2001:db8::9", "fd73::2")
    assert (packet[IPerror6].src, packet[IPerror6].dst) == ("fd73::2", "2001:db8::7")
    assert packet[ICMPv6EchoRequest].id == 0x1234
    assert is_whole(packet, ICMPv6TimeExceeded)


def test_the_mtu_of_a_narrow_link_is_told() -> None:
    assert complained(4, 3, 4, 1300)[ICMP].nexthopmtu == 1300
    assert complained(6, 2, 0, 1300)[ICMPv6PacketTooBig].mtu == 1300
    assert complained(4, 3, 1, 1300)[ICMP].nexthopmtu == 0


@BOTH
def test_a_complaint_of_another_kind_is_passed_over(version: int) -> None:
    watch = Watch()
    watch.pings.send(request(1, version))
    (fd,) = watch.open
    (sock,) = PingSocket.made
    (level, option, data), (sent,) = complaint(version, 11, 0)[0], sock.sent
    local = data[:4] + b"\x01" + data[5:]
    for message, ancillary in (
        (sent, []),
        (sent, [(level, option + 1, data)]),
        (sent, [(level, option, data[:8])]),
        (sent, [(level, option, local)]),
        (sent[:7], [(level, option, data)]),
    ):
        sock.sent.clear()
        sock.complaints.append((message, ancillary))
        assert watch.pings.receive(fd) is None
    watch.pings.close()


@BOTH
def test_who_may_not_ping_says_so(version: int) -> None:
    PingSocket.refuses = errno.EACCES
    watch = Watch()
    told = watch.pings.send(request(1, version))
    assert told is not None
    if version == 4:
        assert (IP(told)[ICMP].type, IP(told)[ICMP].code) == (3, 13)
    else:
        assert IPv6(told)[ICMPv6DestUnreach].code == 1
    assert (watch.open, len(watch.pings)) == (set(), 0)


def test_one_socket_serves_one_ping_program() -> None:
    watch = Watch()
    for _ in range(3):
        watch.pings.send(request(1))
    watch.pings.send(request(2))
    assert len(watch.pings) == 2
    watch.pings.close()


def test_there_are_so_many_and_the_oldest_makes_room() -> None:
    watch = Watch()
    for identifier in range(MAX_PINGS):
        watch.pings.send(request(identifier))
    first = PingSocket.made[0].fileno()
    second = PingSocket.made[1].fileno()
    watch.pings.send(request(0))  # used again: no longer the oldest
    watch.pings.send(request(MAX_PINGS))
    assert len(watch.pings) == MAX_PINGS
    assert first in watch.open
    assert second not in watch.pings or PingSocket.made[-1].fileno() == second
    watch.pings.close()


def test_one_that_cannot_be_sent_is_lost() -> None:
    PingSocket.refuses = errno.ENETUNREACH
    watch = Watch()
    assert watch.pings.send(request(1)) is None
    assert (watch.open, len(watch.pings)) == (set(), 0)


@BOTH
def test_what_is_no_answer_is_dropped(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    watch.pings.send(request(1, version))
    (fd,) = watch.open
    for message in (b"", b"\x81" * 7, b"\x00" * 7, b"\x01" + bytes(20)):
        monkeypatch.setattr(PingSocket, "recv", lambda *_, message=message: message)
        assert watch.pings.receive(fd) is None
    watch.pings.close()


def test_requests_to_others_than_the_relay_are_told_from_everything_else() -> None:
    takes = Watch().pings.takes
    for version in (4, 6):
        assert takes(request(1, version))
    for packet in (
        IP(dst="10.73.0.1") / ICMP(type=8),
        IP(dst="192.0.2.7") / ICMP(type=0),
        IP(dst="192.0.2.7") / UDP(sport=0x800),
        IP(dst="192.0.2.7") / TCP(sport=0x800),
        IPv6(dst="fd73::1") / ICMPv6EchoRequest(),
        IPv6(dst="2001:db8::7") / ICMPv6EchoReply(),
    ):
        assert not takes(memoryview(bytes(packet)))
