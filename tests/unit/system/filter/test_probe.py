"""The packet that proves the path: what Scapy, which shares no code with it, reads in it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from lab.watch.dissect import checksums_right
from wgvsock.system.filter.probe import DESTINATIONS, PORT, SOURCE_PORTS, make_probe


@pytest.mark.parametrize("source", ["10.73.0.2", "255.255.255.254", "fd73::2", "ffff:ffff::ffff"])
def test_a_syn_from_the_enclave_to_nobody(source: str) -> None:
    address = ip_address(source)
    data = make_probe(address, 7)
    packet = IP(data) if address.version == 4 else IPv6(data)
    assert (packet.src, packet.dst) == (source, str(DESTINATIONS[address.version]))
    assert (packet[TCP].sport, packet[TCP].dport, packet[TCP].flags) == (SOURCE_PORTS[7], PORT, "S")
    assert len(packet[TCP].payload) == 0
    assert checksums_right(data)


def test_nobody_has_the_destinations() -> None:
    """RFC 5737 and RFC 3849."""
    assert {version: str(address) for version, address in DESTINATIONS.items()} == {4: "192.0.2.1", 6: "2001:db8::1"}


def test_no_probe_meets_the_flow_of_the_one_before() -> None:
    """One that left while nothing dropped it stays in connection tracking for two minutes."""
    packets = {make_probe(ip_address("10.73.0.2"), number) for number in range(len(SOURCE_PORTS))}
    assert len(packets) == len(SOURCE_PORTS)
    assert make_probe(ip_address("10.73.0.2"), len(SOURCE_PORTS)) in packets
