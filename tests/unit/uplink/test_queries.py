"""DNS datagrams of the enclave, and a forwarder on this machine's loopback."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Packet, Raw

from wgvsock.uplink import queries
from wgvsock.uplink.queries import Queries

ENCLAVE = {4: "10.73.0.2", 6: "fd73::2"}
GATEWAY = {4: "10.73.0.1", 6: "fd73::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

BOTH = pytest.mark.parametrize("version", [4, 6])


def packet(version: int, port: int, identifier: int, name: str = "example.org", **fields: int) -> Packet:
    network = (IP if version == 4 else IPv6)(src=ENCLAVE[version], dst=GATEWAY[version])
    return network / UDP(sport=port, dport=53, **fields) / DNS(id=identifier, qd=DNSQR(qname=name))


def view(packet: Packet) -> memoryview:
    return memoryview(bytearray(bytes(packet)))


def read(version: int, data: bytes | None) -> Packet:
    assert data is not None
    parsed: Packet = (IP if version == 4 else IPv6)(data)
    return parsed


class Place:
    """The queries of an enclave, and the socket of a forwarder."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.forwarder = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        self.forwarder.settimeout(5)
        self.forwarder.bind((LOOPBACK[version], 0))
        self.opened: list[int] = []
        gateway = (ip_address(GATEWAY[version]),)
        self.queries = Queries(self.opened.append, gateway, self.forwarder.getsockname()[1])

    def ask(self, port: int, identifier: int, name: str = "example.org") -> tuple[bytes, tuple[str, int]]:
        """What the forwarder receives, and from whom."""
        assert self.queries.send(view(packet(self.version, port, identifier, name))) is None
        data, client = self.forwarder.recvfrom(4096)
        return data, client

    def answer(self, data: bytes, client: tuple[str, int]) -> bytes | None:
        """What the enclave receives."""
        self.forwarder.sendto(data, client)
        assert select.select(self.opened, [], [], 5)[0]
        return self.queries.receive(self.opened[0])

    def close(self) -> None:
        self.queries.close()
        self.forwarder.close()


@pytest.fixture(params=[4, 6])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(request.param)
    yield made
    made.close()


def test_an_answer_returns_to_the_port_and_identifier_that_asked(place: Place) -> None:
    asked = [(port, place.ask(port, 7, f"name{port}.test")) for port in (5000, 5001, 5002)]
    assert len({data[:2] for _, (data, _) in asked}) == 3  # all have the same identifier in the enclave
    assert {client for _, (_, client) in asked} == {asked[0][1][1]}
    assert len(place.opened) == 1
    for port, (data, client) in reversed(asked):
        told = read(place.version, place.answer(data, client))
        assert (told.src, told.dst) == (GATEWAY[place.version], ENCLAVE[place.version])
        assert (told[UDP].sport, told[UDP].dport, told[DNS].id) == (53, port, 7)
        assert told[DNS].qd[0].qname.decode() == f"name{port}.test."
        original = bytes(told)
        del told[UDP].chksum
        assert bytes(told) == original
    assert len(place.queries) == 0


def test_an_answer_that_nobody_asked_for_is_dropped(place: Place) -> None:
    data, client = place.ask(5000, 7)
    assert place.answer(bytes((data[0], data[1] ^ 1)) + data[2:], client) is None
    assert place.answer(data, client) is not None
    assert place.answer(data, client) is None  # twice
    data, client = place.ask(5000, 7)
    assert place.answer(data[:11], client) is None


def test_the_oldest_gives_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_QUERIES", 3)
    asked = [place.ask(5000 + number, number) for number in range(4)]
    assert len(place.queries) == 3
    assert place.answer(*asked[0]) is None
    assert [read(place.version, place.answer(*one))[DNS].id for one in asked[1:]] == [1, 2, 3]


def test_identifiers_wrap_around_those_that_still_wait(place: Place) -> None:
    slow = place.ask(5000, 7)
    for _ in range(65_536):
        place.queries._waiting[place.queries._note(None)] = None  # type: ignore[arg-type, assignment]
        place.queries._waiting.popitem()
    again = place.ask(5001, 8)
    assert slow[0][:2] != again[0][:2]
    assert read(place.version, place.answer(*slow))[UDP].dport == 5000


@BOTH
def test_a_port_on_which_nobody_listens_is_told(version: int) -> None:
    place = Place(version)
    place.forwarder.close()
    told = place.queries.send(view(packet(version, 5000, 7)))
    if told is None:
        assert select.select(place.opened, [], [], 5)[0]
        told = place.queries.receive(place.opened[0])
    error = read(version, told)
    assert (error.src, error.dst) == (GATEWAY[version], ENCLAVE[version])
    message = error[ICMP if version == 4 else ICMPv6DestUnreach]
    assert (message.type, message.code) == ((3, 3) if version == 4 else (1, 4))
    assert (error[UDPerror].sport, error[UDPerror].dport) == (5000, 53)
    assert place.queries.receive(place.opened[0]) is None
    assert len(place.queries) == 0
    place.queries.close()


def test_a_machine_without_ipv6_tells_that_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIpv6(socket.socket):
        def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().connect(address)

    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    opened: list[int] = []
    made = Queries(opened.append, [ip_address(gateway) for gateway in GATEWAY.values()], 9)
    assert len(opened) == 1
    assert made.takes(view(packet(6, 5000, 7)))
    assert ICMPv6DestUnreach in read(6, made.send(view(packet(6, 5000, 7))))
    made.close()


@BOTH
def test_what_is_damaged_goes_no_further(version: int) -> None:
    place = Place(version)
    wrong = packet(version, 5000, 7, chksum=0x1234)
    network = IP if version == 4 else IPv6
    short = network(src=ENCLAVE[version], dst=GATEWAY[version]) / UDP(sport=5000, dport=53) / Raw(bytes(11))
    long = packet(version, 5000, 7, len=2000)
    without = packet(version, 5000, 7, chksum=0)
    for one in (wrong, short, long, without):
        assert place.queries.send(view(one)) is None
    # A datagram without a checksum is sound for IPv4 only (RFC 768; RFC 8200, section 8.1).
    assert len(place.queries) == (1 if version == 4 else 0)
    place.close()


@BOTH
def test_only_datagrams_to_the_name_port_of_a_gateway_are_taken(version: int) -> None:
    place = Place(version)
    query = packet(version, 5000, 7)
    assert place.queries.takes(view(query))
    query.dst = "10.73.0.9" if version == 4 else "fd73::9"
    assert not place.queries.takes(view(query))
    network = IP if version == 4 else IPv6
    gateway = network(src=ENCLAVE[version], dst=GATEWAY[version])
    assert not place.queries.takes(view(gateway / UDP(sport=53, dport=54) / Raw(bytes(20))))
    assert not place.queries.takes(view(gateway / TCP(sport=5000, dport=53)))
    other = 10 - version
    assert not place.queries.takes(view(packet(other, 5000, 7)))
    assert place.opened[0] in place.queries
    assert 999 not in place.queries
    place.close()
