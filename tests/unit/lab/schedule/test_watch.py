from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from lab.schedule.watch import Rules, addresses_of

FIRST4, FIRST6, SECOND = ip_network("10.73.0.2/32"), ip_network("fd73::2/128"), ip_network("10.73.0.4/32")
POOL = ip_network("198.18.73.0/24")
RULES = Rules({"pod.wg0": (FIRST4, FIRST6), "pod.wg1": (SECOND,), "pod.wg[2-9]*": (POOL,)})


def packet(source: str, destination: str, sport: int = 7, dport: int = 80) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    ports = struct.pack("!HH", sport, dport)
    if ip_address(source).version == 4:
        return bytes([0x45]) + bytes(11) + ends + ports
    return bytes([0x60]) + bytes(7) + ends + ports


@pytest.mark.parametrize(
    ("interface", "source", "destination", "forbidden"),
    [
        ("pod.eth0", "10.73.0.2", "198.51.100.10", True),
        ("pod.eth0", "198.51.100.10", "10.73.0.2", True),
        ("node.uplink0", "fd73::2", "2001:db8:100::10", True),
        ("pod.eth0", "10.20.0.10", "198.51.100.10", False),
        ("pod.wg0", "10.73.0.2", "198.51.100.10", False),
        ("pod.wg1", "10.73.0.2", "198.51.100.10", True),  # another enclave's tunnel
        ("pod.wg0", "10.73.0.2", "10.73.0.4", True),  # to a neighbour: on either tunnel one of the two is foreign
        ("node.wg0", "10.73.0.2", "198.51.100.10", True),  # not the pod's
        ("pod.wg3", "198.18.73.3", "198.51.100.10", False),  # one that was replaced has another interface
        ("pod.eth0", "198.18.73.3", "198.51.100.10", True),
        ("pod.wg1", "198.18.73.3", "198.51.100.10", True),
    ],
)
def test_a_tunnel_s_addresses_are_on_its_own_interface_alone(
    interface: str, source: str, destination: str, forbidden: bool
) -> None:
    found = RULES.forbid(interface, packet(source, destination))
    if not forbidden:
        assert found is None
        return
    assert found is not None
    assert found[:3] == (source, destination, (7, 80))
    assert ip_address(source) in found[3] or ip_address(destination) in found[3]


def test_what_is_no_ip_packet_is_nobody_s() -> None:
    assert addresses_of(b"") is None
    assert addresses_of(bytes(64)) is None
    assert addresses_of(bytes([0x60]) + bytes(20)) is None
    assert RULES.forbid("pod.eth0", b"\x00\x01\x08\x00\x06\x04") is None  # ARP


def test_a_packet_without_ports() -> None:
    short = packet("10.73.0.2", "198.51.100.10")[:20]
    assert RULES.forbid("pod.eth0", short) == ("10.73.0.2", "198.51.100.10", (0, 0), FIRST4)
