"""What a packet claims about itself. Untrustworthy packets have no reading."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.packet import Raw

from tests.unit.egress.packets import ENCLAVE, PEER, back, other, out
from wgvsock.egress.policy import Packet
from wgvsock.egress.reading import quoted, read, reversed_flow

VERSIONS = pytest.mark.parametrize("version", [4, 6])


def addresses(version: int) -> bytes:
    return ip_address(ENCLAVE[version]).packed + ip_address(PEER[version]).packed


def packet_of(ip: memoryview) -> Packet:
    reading = read(ip)
    assert reading is not None
    return reading.packet


@VERSIONS
@pytest.mark.parametrize(("layer", "number"), [(TCP, 6), (UDP, 17)])
def test_ends_and_ports(version: int, layer: Any, number: int) -> None:
    reading = read(out(layer(sport=40000, dport=443), version=version))
    assert reading is not None
    assert reading.packet == Packet(ip_address(PEER[version]), number, 443)
    assert reading.source == ip_address(ENCLAVE[version])
    assert reading.flow == addresses(version) + (40000).to_bytes(2, "big") + (443).to_bytes(2, "big")
    assert (reading.datagram, reading.is_later, reading.is_error) == (b"", False, False)


@pytest.mark.parametrize(("flags", "begins"), [("S", True), ("SEC", True), ("SA", False), ("A", False), ("R", False)])
def test_only_a_syn_that_answers_none_begins_a_connection(flags: str, begins: bool) -> None:
    reading = read(out(TCP(flags=flags)))
    assert reading is not None
    assert reading.begins_connection == begins
    datagram = read(out(UDP() / Raw(b"\x02" * 20)))
    assert datagram is not None
    assert not datagram.begins_connection


@pytest.mark.parametrize(
    ("version", "layer", "kind"),
    [
        (4, ICMP(type=8, id=0xBEEF), 8),
        (4, ICMP(type=0, id=0xBEEF), 0),
        (6, ICMPv6EchoRequest(id=0xBEEF), 128),
        (6, ICMPv6EchoReply(id=0xBEEF), 129),
    ],
)
def test_echo_messages_have_their_identifier_in_the_ports_place(version: int, layer: Any, kind: int) -> None:
    reading = read(out(layer, version=version))
    assert reading is not None
    assert reading.port == kind
    assert reading.flow == addresses(version) + b"\xbe\xef"


def test_icmp_of_the_other_family_is_a_protocol_like_any_other() -> None:
    for ip, number in ((out(Raw(bytes(8)), proto=58), 58), (out(Raw(bytes(8)), version=6, nh=1), 1)):
        assert packet_of(ip) == Packet(read(ip).destination, number, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(("number", "size"), [(47, 4), (50, 8), (132, 12), (253, 0)])
@VERSIONS
def test_other_protocols(version: int, number: int, size: int) -> None:
    ip = out(Raw(bytes(size)), version=version, **other(number, version))
    assert packet_of(ip) == Packet(ip_address(PEER[version]), number, 0)


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrFragment(),
    ],
)
def test_the_transport_behind_extension_headers(headers: Any) -> None:
    reading = read(out(headers / UDP(sport=1, dport=53), version=6))
    assert reading is not None
    assert (reading.protocol, reading.port) == (17, 53)
    assert bool(reading.datagram) == (IPv6ExtHdrFragment in headers)


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrRouting(addresses=["2001:db8::9"]),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(type=2, addresses=["2001:db8::9"]),
        IPv6ExtHdrFragment() / IPv6ExtHdrFragment(),
        IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    ],
)  # fmt: skip
def test_headers_that_may_lead_elsewhere_or_nowhere(headers: Any) -> None:
    assert read(out(headers / UDP(dport=53), version=6)) is None


@pytest.mark.parametrize("options", [[IPOption_LSRR(routers=["10.0.0.1"])], [IPOption_NOP()] * 4])
def test_options_of_ipv4(options: Any) -> None:
    assert read(out(UDP(dport=53), options=options)) is None


@pytest.mark.parametrize(
    "ip",
    [
        out(TCP(dport=443)),
        out(UDP(dport=443) / Raw(b"x")),
        out(ICMP()),
        out(TCP(dport=443), version=6),
        out(IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment() / UDP(dport=443), version=6),
    ],
)
def test_a_packet_that_is_cut_off_or_has_bytes_behind_it(ip: memoryview) -> None:
    for length in range(len(ip)):
        assert read(ip[:length]) is None
    assert read(memoryview(bytes(ip) + b"\0")) is None


@pytest.mark.parametrize(
    ("ip", "too_short"),
    [
        (out(Raw(bytes(19)), proto=6), True),
        (out(Raw(bytes(20)), proto=6), False),
        (out(Raw(bytes(7)), proto=17), True),
        (out(Raw(bytes(7)), proto=1), True),
        (out(Raw(bytes(8)), proto=17, flags="MF"), False),
        (out(Raw(bytes(8)), proto=6, flags="MF"), True),
        (out(Raw(bytes(7)), version=6, nh=58), True),
        (out(IPv6ExtHdrFragment(m=1, nh=6) / Raw(bytes(16)), version=6), True),
    ],
)
def test_a_transport_header_is_there_whole(ip: memoryview, too_short: bool) -> None:
    assert (read(ip) is None) == too_short


def test_no_other_version() -> None:
    for first in (0x00, 0x44, 0x46, 0x55, 0x75, 0xF5):
        assert read(memoryview(bytes([first]) + bytes(out(UDP()))[1:])) is None


def pieces(version: int, number: int) -> list[memoryview]:
    """The fragments of one large datagram."""
    payload = UDP(sport=7, dport=9) / Raw(bytes(4000))
    if version == 4:
        made = fragment(IP(src=ENCLAVE[4], dst=PEER[4], id=number) / payload, 1480)
    else:
        whole = IPv6(src=ENCLAVE[6], dst=PEER[6]) / IPv6ExtHdrFragment(id=number) / payload
        made = fragment6(whole, 1400)
    return [memoryview(bytes(piece)) for piece in made]


@VERSIONS
def test_fragments_of_one_datagram_are_known_by_it(version: int) -> None:
    readings = [read(piece) for piece in pieces(version, 5)]
    assert len(readings) >= 3
    first, *later = (reading for reading in readings if reading is not None)
    assert len(later) == len(readings) - 1
    assert (first.is_later, first.port) == (False, 9)
    assert {(reading.is_later, reading.port, reading.flow) for reading in later} == {(True, 0, addresses(version))}
    (datagram,) = {reading.datagram for reading in (first, *later)}
    another = read(pieces(version, 6)[1])
    assert another is not None
    assert another.datagram not in {b"", datagram}


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x60"]))
def test_no_bytes_raise(data: bytes, first: bytes) -> None:
    ip = memoryview(first + data)
    reading = read(ip)
    if reading is not None:
        assert reading.transport <= len(ip)
        quoted(reading, ip)


@VERSIONS
def test_the_other_end_writes_the_flow_the_other_way_round(version: int) -> None:
    for ours, theirs in (
        (out(UDP(sport=1, dport=2), version=version), back(UDP(sport=2, dport=1), version=version)),
        (out(Raw(b""), version=version, **other(47, version)),
         back(Raw(b""), version=version, **other(47, version))),
    ):  # fmt: skip
        mine, reverse = read(ours), read(theirs)
        assert mine is not None
        assert reverse is not None
        assert reversed_flow(reverse.flow) == mine.flow
        assert reversed_flow(mine.flow) == reverse.flow
    ping, pong = read(back(ICMP(type=8, id=7))), read(out(ICMP(type=0, id=7)))
    assert ping is not None
    assert pong is not None
    assert reversed_flow(ping.flow) == pong.flow


@VERSIONS
@pytest.mark.parametrize(("layer", "number"), [(TCP, 6), (UDP, 17)])
def test_an_error_tells_which_flow_it_is_about(version: int, layer: Any, number: int) -> None:
    came = bytes(back(layer(sport=5000, dport=80), version=version))
    error = ICMP(type=3, code=3) if version == 4 else ICMPv6DestUnreach(code=4)
    ip = out(error / Raw(came[: (28 if version == 4 else 48)]), version=version)
    reading = read(ip)
    assert reading is not None
    assert reading.is_error
    assert quoted(reading, ip) == (number, addresses(version) + b"\0\x50\x13\x88")


def test_an_error_about_nothing_that_can_be_told() -> None:
    came = bytes(back(UDP(sport=5000, dport=80)))
    pinged, elsewhere = bytes(back(ICMP())), bytes(back(UDP(sport=5000, dport=80), of="203.0.113.99"))
    later = bytes(back(UDP(sport=5000, dport=80), frag=2))
    optional = bytes(back(UDP(sport=5000, dport=80), options=[IPOption_NOP()] * 4))
    for inner in (b"", came[:19], came[:23], pinged, elsewhere, later, optional, b"\x55" + came[1:]):
        ip = out(ICMP(type=3, code=3) / Raw(inner))
        reading = read(ip)
        assert reading is not None
        assert quoted(reading, ip) is None
    came6 = bytes(back(UDP(), version=6))
    ip = out(ICMPv6DestUnreach() / Raw(came6[:43]), version=6)
    reading = read(ip)
    assert reading is not None
    assert quoted(reading, ip) is None


def test_other_messages_are_no_errors() -> None:
    for ip in (out(ICMP(type=8)), out(ICMP(type=13)), out(ICMPv6MLReport(), version=6), out(UDP(dport=3))):
        reading = read(ip)
        assert reading is not None
        assert not reading.is_error
