"""Whose packets a sentinel sees. With real interfaces: tests/e2e/test_shared_machine.py."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from lab.guest import sentinel


@pytest.mark.parametrize(
    ("protocol", "packet"),
    [
        (0x0800, IP(src="10.73.0.2", dst="198.51.100.10") / UDP()),
        (0x0800, IP(src="198.51.100.10", dst="10.73.0.2") / UDP()),
        (0x0800, IP(src="10.20.0.10", dst="198.51.100.10") / UDP()),
        (0x86DD, IPv6(src="fd73::2", dst="2001:db8:100::10") / UDP()),
        (0x86DD, IPv6(src="fd20::10", dst="2001:db8:100::10") / UDP()),
    ],
)
def test_both_ends_are_read(protocol: int, packet: IP | IPv6) -> None:
    assert sentinel.addresses_of(protocol, bytes(packet)) == (packet.src, packet.dst)


@pytest.mark.parametrize(("protocol", "packet"), [(0x0806, bytes(28)), (0x0800, bytes(19)), (0x86DD, bytes(39))])
def test_what_is_no_ip_packet_has_no_ends(protocol: int, packet: bytes) -> None:
    assert sentinel.addresses_of(protocol, packet) == ()


@pytest.mark.parametrize(
    ("interface", "hardware", "tunnel"),
    [
        ("wg0", 0xFFFE, True),
        ("", 0xFFFE, True),  # gone before its last packets were read
        ("", 1, False),
        ("eth0", 1, False),
        ("tun7", 0xFFFE, False),
    ],
)
def test_a_tunnel_is_known_after_its_end(interface: str, hardware: int, tunnel: bool) -> None:
    assert sentinel.is_tunnel(interface, hardware, ["wg0"]) is tunnel
