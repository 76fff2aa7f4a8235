"""What the stack receives, compared with Scapy's packets."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from wgvsock.uplink.packets import complete_checksum, is_plain

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


def network(version: int) -> Packet:
    return IP(src="10.73.0.2", dst="203.0.113.7") if version == 4 else IPv6(src="fd73::2", dst="2001:db8::7")


@pytest.mark.parametrize(
    "packet",
    [
        network(version) / transport
        for version in (4, 6)
        for transport in (TCP(), UDP(), ICMP() if version == 4 else ICMPv6EchoRequest())
    ],
)
def test_whole_packets_of_three_protocols_are_plain(packet: Packet) -> None:
    assert is_plain(memoryview(bytes(packet)))


@pytest.mark.parametrize(
    "packet",
    [
        IP(flags="MF") / UDP(),
        IP(frag=1) / Raw(bytes(8)),
        IP(options=[IPOption_RR()]) / UDP(),
        IP(proto=132) / Raw(bytes(20)),
        IP(len=21) / UDP(),
        IPv6() / IPv6ExtHdrFragment() / UDP(),
        IPv6() / IPv6ExtHdrHopByHop() / UDP(),
        IPv6(plen=7) / UDP(),
        Raw(b"\x60" * 39),
        Raw(b"\x10" * 60),
        IP(proto=6) / Raw(bytes(19)),
        IP(proto=17) / Raw(bytes(7)),
        IP(proto=58) / Raw(bytes(20)),
        IPv6(nh=6) / Raw(bytes(19)),
        IPv6(nh=1) / Raw(bytes(20)),
    ],
)
def test_nothing_else_is(packet: Packet) -> None:
    assert not is_plain(memoryview(bytes(packet)))


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1399, 1400])
def test_an_open_checksum_is_completed(version: int, size: int) -> None:
    whole = bytes(network(version) / UDP(sport=1, dport=2) / Raw((bytes(range(256)) * 6)[:size]))
    start = 20 if version == 4 else 40
    addresses = whole[12:20] if version == 4 else whole[8:40]
    pseudo = addresses + (17).to_bytes(4, "big") + (len(whole) - start).to_bytes(4, "big")
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2)) % 0xFFFF
    packet = bytearray(whole)
    packet[start + 6 : start + 8] = total.to_bytes(2, "big")
    complete_checksum(memoryview(packet), start, 6)
    assert packet == whole


def test_a_checksum_behind_the_end_is_left_alone() -> None:
    packet = bytearray(20)
    complete_checksum(memoryview(packet), 19, 6)
    assert packet == bytes(20)
