from __future__ import annotations

from ipaddress import ip_interface
from itertools import combinations

import pytest

from lab.topology import PACKET_POINTS, TOPOLOGY, TWO_ENCLAVES, Node, Point


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


def test_two_enclaves_share_nothing_but_the_pod() -> None:
    first, second = TWO_ENCLAVES.tenants
    assert (first.node, second.node) == (Node.ENCLAVE, Node.SECOND)
    assert (first.enclave4, first.relay6) == (TOPOLOGY.enclave4, TOPOLOGY.relay6)
    assert first.interface != second.interface
    for ours, theirs in zip(first.addresses, second.addresses, strict=True):
        assert not ip_interface(ours).network.overlaps(ip_interface(theirs).network)
    for tenant in TWO_ENCLAVES.tenants:
        for here, there in zip(tenant.addresses, tenant.relay_addresses, strict=True):
            assert ip_interface(here).network == ip_interface(there).network
    ports = [port for one in TWO_ENCLAVES.tenants for port in (one.application.echo_port, one.application.http_port)]
    assert len(set(ports)) == 4


def test_an_enclave_by_its_machine() -> None:
    assert TWO_ENCLAVES.tenant(Node.SECOND).name == "second"
    assert TOPOLOGY.nodes == (Node.ENCLAVE, Node.POD, Node.NODE, Node.EXTERNAL)
    assert set(TWO_ENCLAVES.nodes) == set(Node)
    with pytest.raises(LookupError):
        TOPOLOGY.tenant(Node.SECOND)


def test_who_asks_a_name_server() -> None:
    assert TOPOLOGY.resolver_of(Node.POD) == f"nameserver {TOPOLOGY.external4}\n"
    assert TOPOLOGY.resolver_of(Node.ENCLAVE) == ""
