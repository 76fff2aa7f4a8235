"""ICMP messages of the relay's own."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6TimeExceeded, IPv6
from scapy.packet import Raw

from wgvsock.uplink.icmp import FAMILIES, error_packet, expired

GATEWAYS = {4: socket.inet_aton("10.73.0.1"), 6: socket.inet_pton(socket.AF_INET6, "fd73::1")}


def packet(version: int, hops: int, transport: Any, to: str = "") -> memoryview:
    if version == 4:
        return memoryview(bytes(IP(src="10.73.0.2", dst=to or "192.0.2.7", ttl=hops) / transport))
    return memoryview(bytes(IPv6(src="fd73::2", dst=to or "2001:db8::7", hlim=hops) / transport))


@pytest.mark.parametrize("transport", [TCP(dport=443), UDP(dport=443)])
def test_the_relay_is_the_first_router(transport: Any) -> None:
    error = expired(packet(4, 1, transport), GATEWAYS)
    assert error is not None
    four = IP(error)
    assert (four.src, four.dst, four[ICMP].type, four[ICMP].code) == ("10.73.0.1", "10.73.0.2", 11, 0)
    assert (TCPerror in four and four[TCPerror].dport == 443) or (UDPerror in four and four[UDPerror].dport == 443)
    error = expired(packet(6, 1, transport), GATEWAYS)
    assert error is not None
    six = IPv6(error)
    assert (six.src, six.dst, six[ICMPv6TimeExceeded].code) == ("fd73::1", "fd73::2", 0)


@pytest.mark.parametrize("version", [4, 6])
def test_what_goes_on_or_is_for_the_relay_does_not_expire(version: int) -> None:
    assert expired(packet(version, 2, UDP(dport=53)), GATEWAYS) is None
    relay = {4: "10.73.0.1", 6: "fd73::1"}[version]
    assert expired(packet(version, 1, UDP(dport=53), relay), GATEWAYS) is None
    assert expired(packet(version, 1, UDP(dport=53)), {}) is None


@pytest.mark.parametrize(("version", "most"), [(4, 576), (6, 1280)])
def test_no_more_is_quoted_than_a_narrow_link_carries(version: int, most: int) -> None:
    whole = bytes(packet(version, 1, UDP(dport=53) / Raw(bytes(3000))))
    error = error_packet(FAMILIES[version], GATEWAYS[version], whole, (3, 3))
    assert len(error) == most
