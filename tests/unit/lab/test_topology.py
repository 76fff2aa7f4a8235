from __future__ import annotations

from itertools import combinations

import pytest

from lab.topology import PACKET_POINTS, TOPOLOGY, Node, Point


def nics() -> list[tuple[str, object]]:
    return [
        (str(nic.mac), interface)
        for link in TOPOLOGY.links
        for nic in (link.left, link.right)
        for interface in nic.interfaces
    ]


def test_no_address_and_no_mac_is_given_twice() -> None:
    addresses = [interface for _, interface in nics()]
    macs = {mac for mac, _ in nics()}
    assert len(set(addresses)) == len(addresses)
    assert len(macs) == 4


def test_both_ends_of_a_cable_share_their_subnets() -> None:
    for link in TOPOLOGY.links:
        right = {interface.network for interface in link.right.interfaces}
        assert {interface.network for interface in link.left.interfaces} <= right | {
            interface.network for interface in link.left.interfaces if interface.network.num_addresses == 1
        }


def test_different_cables_do_not_overlap() -> None:
    networks = [{interface.network for interface in link.left.interfaces} for link in TOPOLOGY.links]
    for one, other in combinations(networks, 2):
        assert not any(a.version == b.version and a.overlaps(b) for a in one for b in other)


def test_every_gateway_is_the_other_end_of_a_cable_of_its_node() -> None:
    for route in TOPOLOGY.routes:
        neighbours = [
            str(interface.ip)
            for link in TOPOLOGY.links
            for here, there in ((link.left, link.right), (link.right, link.left))
            if here.node is route.node
            for interface in there.interfaces
        ]
        assert route.gateway in neighbours


def test_names_of_addresses_are_those_of_the_interfaces() -> None:
    of = {str(interface.ip) for _, interface in nics()}  # type: ignore[attr-defined]
    for name in ("pod4", "pod6", "external4", "external6", "metadata4", "metadata6"):
        assert getattr(TOPOLOGY, name) in of


def test_the_enclave_has_no_cable() -> None:
    assert all(Node.ENCLAVE not in {link.left.node, link.right.node} for link in TOPOLOGY.links)


def test_every_point_but_the_vsock_is_an_interface() -> None:
    assert set(Point) - set(PACKET_POINTS) == {Point.VSOCK}


def test_look_up_by_name() -> None:
    assert TOPOLOGY.nic(Node.POD, "eth0").addresses[0] == "10.20.0.10/24"
    assert TOPOLOGY.service(Node.EXTERNAL).dns_port == 53
    with pytest.raises(LookupError):
        TOPOLOGY.nic(Node.POD, "eth7")
    with pytest.raises(LookupError):
        TOPOLOGY.service(Node.POD)
