"""What sockets hear of their packets: the kernel's own complaints on loopback, and those of routers by a double."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPerror6, IPv6

from wgvsock.uplink import complaints
from wgvsock.uplink.icmp import FAMILIES

GATEWAYS = {4: socket.inet_aton("10.73.0.1"), 6: socket.inet_pton(socket.AF_INET6, "fd73::1")}
END = {
    4: socket.inet_aton("10.73.0.2") + struct.pack(">H", 5000),
    6: socket.inet_pton(socket.AF_INET6, "fd73::2") + struct.pack(">H", 5000),
}
ROUTER = {4: "198.51.100.9", 6: "2001:db8::9"}
WORLD = {4: ("192.0.2.7", 443), 6: ("2001:db8::7", 443, 0, 0)}

BOTH = pytest.mark.parametrize("version", [4, 6])


@BOTH
def test_nobody_listens_on_the_relays_loopback(version: int) -> None:
    family, host = FAMILIES[version], {4: "127.0.0.1", 6: "::1"}[version]
    with socket.socket(family.family, socket.SOCK_DGRAM) as free:
        free.bind((host, 0))
        nobody = free.getsockname()
    with socket.socket(family.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(family.level, family.errors_option, 1)
        assert complaints.of_datagram(sock.fileno(), END[version], GATEWAYS) is None
        sock.sendto(b"anybody?", nobody)
        told = complaints.of_datagram(sock.fileno(), END[version], GATEWAYS)
        assert sock.fileno() >= 0  # it is the stack's, and stays open
        assert complaints.of_datagram(sock.fileno(), END[version], GATEWAYS) is None
    assert told is not None
    if version == 4:
        packet = IP(told)
        assert (packet.src, packet.dst, packet[ICMP].type, packet[ICMP].code) == ("10.73.0.1", "10.73.0.2", 3, 3)
        assert (packet[IPerror].src, packet[IPerror].dst) == ("10.73.0.2", "10.73.0.1")
    else:
        packet = IPv6(told)
        assert (packet.src, packet.dst, packet[ICMPv6DestUnreach].code) == ("fd73::1", "fd73::2", 4)
        assert (packet[IPerror6].src, packet[IPerror6].dst) == ("fd73::2", "fd73::1")
    assert (packet[UDPerror].sport, packet[UDPerror].dport) == (5000, nobody[1])
    assert bytes(packet[UDPerror].payload) == b"anybody?"


class Hearing:
    """A socket that has heard one thing."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def recvmsg(self, *_: int) -> Any:
        if isinstance(self._answer, OSError):
            raise self._answer
        return self._answer

    def detach(self) -> int:
        return 0


def said(version: int, kind: tuple[int, int], info: int, *, origin: int = 0) -> tuple[int, int, bytes]:
    family = FAMILIES[version]
    error = struct.pack("=IBBBxII", 113, origin or (2 if version == 4 else 3), *kind, info, 0)
    router = socket.inet_pton(family.family, ROUTER[version])
    name = struct.pack("=HH4s8x", 2, 0, router) if version == 4 else struct.pack("=HHI16sI", 10, 0, 0, router, 0)
    return family.level, family.errors_option, error + name


def told_of(monkeypatch: pytest.MonkeyPatch, version: int, ancillary: list[Any], message: bytes = b"data") -> Any:
    monkeypatch.setattr(socket, "socket", lambda **_: Hearing((message, ancillary, 0, WORLD[version])))
    return complaints.of_datagram(9, END[version], GATEWAYS)


@BOTH
def test_the_mtu_of_a_narrow_link_reaches_the_enclave(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(monkeypatch, version, [said(version, FAMILIES[version].too_big, 1300)])
    packet = IP(told) if version == 4 else IPv6(told)
    assert packet.src == ROUTER[version]
    assert (packet[ICMP].nexthopmtu if version == 4 else packet[ICMPv6PacketTooBig].mtu) == 1300
    assert packet[UDPerror].dport == 443


@BOTH
def test_what_is_not_icmps_is_nothing(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    level, option, data = said(version, (3, 3), 0)
    for ancillary in (
        [],
        [(level, option + 1, data)],
        [(level, option, data[:8])],
        [said(version, (3, 3), 0, origin=1)],
    ):
        assert told_of(monkeypatch, version, ancillary) is None
    monkeypatch.setattr(socket, "socket", lambda **_: Hearing(OSError("gone")))
    assert complaints.of_datagram(9, END[version], GATEWAYS) is None
