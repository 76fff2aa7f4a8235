"""Address translation in both directions, and what is refused: TCP, UDP, ICMP, IPv4 and IPv6."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP

from lab.ladder import Ladder
from lab.topology import Node, Point
from lab.watch.dissect import ip_layers

pytestmark = pytest.mark.lab

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def address(lab: Ladder, name: str, family: int) -> str:
    return str(getattr(lab.topology, f"{name}{family}"))


@FAMILIES
def test_tcp_out(tunnel: Ladder, family: int) -> None:
    report = tunnel.probe(Node.ENCLAVE, "tcp", address(tunnel, "external", family), "7", "--bytes", "2000000")
    assert report["local"][0] == address(tunnel, "enclave", family)


@FAMILIES
def test_udp_out(tunnel: Ladder, family: int) -> None:
    tunnel.probe(Node.ENCLAVE, "udp", address(tunnel, "external", family), "7", "--bytes", "1400")


@FAMILIES
def test_icmp_out(tunnel: Ladder, family: int) -> None:
    report = tunnel.probe(Node.ENCLAVE, "ping", address(tunnel, "external", family), "--count", "3")
    assert len(report["rtt_ms"]) == 3


@FAMILIES
def test_the_outside_sees_the_pods_address(tunnel: Ladder, family: int) -> None:
    report = tunnel.probe(Node.ENCLAVE, "http", address(tunnel, "external", family), "80", "/whoami")
    assert json.loads(report["body"])["address"] == address(tunnel, "pod", family)


@FAMILIES
def test_two_connections_from_one_port_are_kept_apart(tunnel: Ladder, family: int) -> None:
    # The pod itself uses the source port that the enclave's application uses: masquerading has to choose another, as
    # long as the kernel remembers the pod's datagram, 30 s; so both are seen by one observation, which takes its time.
    external = address(tunnel, "external", family)
    with tunnel.observe(Point.EXTERNAL_ETH0) as observation:
        for node in (Node.POD, Node.ENCLAVE):
            tunnel.probe(node, "udp", external, "7", "--source-port", "40404", "--text", observation.token)
        sightings = observation.sightings(Point.EXTERNAL_ETH0, to_port=7)
    ports = [sighting.ports[0] for sighting in sightings]
    assert ports[0] == 40404
    assert len(ports) == 2
    assert ports[1] != 40404


@FAMILIES
def test_published_tcp_in(tunnel: Ladder, family: int) -> None:
    port = str(tunnel.topology.application.echo_port)
    tunnel.probe(Node.EXTERNAL, "tcp", address(tunnel, "pod", family), port, "--bytes", "2000000")


@FAMILIES
def test_published_udp_in(tunnel: Ladder, family: int) -> None:
    port = str(tunnel.topology.application.echo_port)
    tunnel.probe(Node.EXTERNAL, "udp", address(tunnel, "pod", family), port, "--bytes", "1400")


@FAMILIES
def test_the_application_sees_its_clients_address(tunnel: Ladder, family: int) -> None:
    port = str(tunnel.topology.application.http_port)
    report = tunnel.probe(Node.EXTERNAL, "http", address(tunnel, "pod", family), port, "/whoami")
    assert json.loads(report["body"])["address"] == address(tunnel, "external", family)


@FAMILIES
def test_ping_to_the_pod_is_answered_by_the_pod(tunnel: Ladder, family: int) -> None:
    with tunnel.observe(Point.RELAY_WG0) as observation:
        tunnel.probe(Node.EXTERNAL, "ping", address(tunnel, "pod", family))
        assert [packet for packet in observation.packets(Point.RELAY_WG0) if packet.ip[20:22] == b"\x08\x00"] == []


@FAMILIES
def test_a_port_that_is_not_published_does_not_reach_the_enclave(tunnel: Ladder, family: int) -> None:
    with tunnel.observe(Point.ENCLAVE_WG0) as observation:
        assert tunnel.has_no_answer(Node.EXTERNAL, "tcp", address(tunnel, "pod", family), "4444")
        seen = [ip_layers(packet) for packet in observation.packets(Point.ENCLAVE_WG0)]
    # A slow machine can still send the end of an earlier connection.
    assert [p.summary() for p in seen if p is not None and TCP in p and 4444 in {p[TCP].sport, p[TCP].dport}] == []


@FAMILIES
def test_relay_and_enclave_reach_each_other_inside(tunnel: Ladder, family: int) -> None:
    tunnel.probe(Node.ENCLAVE, "ping", address(tunnel, "relay", family))
    tunnel.probe(Node.POD, "ping", address(tunnel, "enclave", family))


@FAMILIES
def test_the_relays_own_services_are_closed_to_the_enclave(tunnel: Ladder, family: int) -> None:
    relay = address(tunnel, "relay", family)
    listener = tunnel.backend.spawn(
        Node.POD, [sys.executable, "-m", "http.server", "--bind", relay, "9808"], name="pod-service"
    )
    try:
        tunnel.backend.deadline(10).poll(
            lambda: tunnel.try_probe(Node.POD, "http", relay, "9808", "--timeout", "1")["ok"], "the service to listen"
        )
        assert tunnel.has_no_answer(Node.ENCLAVE, "http", relay, "9808")
    finally:
        listener.kill()


@FAMILIES
def test_the_metadata_service_is_closed_to_the_enclave(tunnel: Ladder, family: int) -> None:
    metadata = address(tunnel, "metadata", family)
    assert tunnel.probe(Node.POD, "http", metadata, "80")["body"] == "hello from node\n"
    with tunnel.observe(Point.RELAY_ETH0) as observation:
        assert tunnel.has_no_answer(Node.ENCLAVE, "http", metadata, "80")
        destinations = {ip_layers(p).dst for p in observation.packets(Point.RELAY_ETH0) if p.ip}
    assert metadata not in destinations


@pytest.mark.parametrize("target", ["169.254.170.2", "169.254.1.1"])
def test_other_link_local_addresses_are_closed_too(tunnel: Ladder, target: str) -> None:
    with tunnel.observe(Point.RELAY_ETH0) as observation:
        assert tunnel.has_no_answer(Node.ENCLAVE, "udp", target, "53")
        destinations = {ip_layers(p).dst for p in observation.packets(Point.RELAY_ETH0) if p.ip}
    assert target not in destinations


@pytest.fixture
def narrow_path(tunnel: Ladder) -> Iterator[int]:
    """The pod's uplink has a smaller MTU than wg0."""
    mtu = 1400
    change = ["ip", "route", "change", "default", "via"]
    gateways = [route.gateway for route in tunnel.topology.routes if route.node is Node.POD]
    for gateway in gateways:
        tunnel.backend.run(Node.POD, [*change, gateway, "dev", "eth0", "mtu", str(mtu)]).check()
    yield mtu
    for gateway in gateways:
        tunnel.backend.run(Node.POD, [*change, gateway, "dev", "eth0"]).check()


@FAMILIES
def test_segment_size_is_clamped_to_the_path(tunnel: Ladder, narrow_path: int, family: int) -> None:
    external = address(tunnel, "external", family)
    headers = 40 if family == 4 else 60
    with tunnel.observe(Point.EXTERNAL_ETH0) as observation:
        tunnel.probe(Node.ENCLAVE, "tcp", external, "7", "--bytes", "100000")
        packets = [ip_layers(packet) for packet in observation.packets(Point.EXTERNAL_ETH0)]
    (syn,) = [packet for packet in packets if packet is not None and TCP in packet and packet[TCP].flags == "S"]
    assert dict(syn[TCP].options)["MSS"] == narrow_path - headers
