"""Unusual packets: what must pass arrives unchanged, and what must not is dropped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Raw

from lab import uplinks
from lab.ladder import PROBE, Ladder
from lab.topology import Node, Point
from lab.watch.dissect import ip_layers
from lab.watch.observation import Observation

pytestmark = pytest.mark.lab

WITHOUT_WG0 = uplinks.asked_for() == "userspace"

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


def address(lab: Ladder, name: str, family: int) -> str:
    return str(getattr(lab.topology, f"{name}{family}"))


def inject(lab: Ladder, packet: Any) -> None:
    """Put a packet on the enclave's wg0 exactly as it is."""
    lines = bytes(packet).hex().encode() + b"\n"
    lab.backend.run(Node.ENCLAVE, [*PROBE, "inject", "wg0"], stdin=lines).check()


def settled(lab: Ladder) -> None:
    """Everything sent before has arrived or is lost once a ping has returned, because the path preserves order."""
    lab.probe(Node.ENCLAVE, "ping", lab.topology.external4)


def seen(observation: Observation, point: Point) -> list[Any]:
    return [layers for packet in observation.packets(point) if (layers := ip_layers(packet)) is not None]


@FAMILIES
@pytest.mark.parametrize("size", [4000, 20000, 60000])
def test_datagrams_larger_than_the_mtu_are_fragmented_and_put_together(tunnel: Ladder, family: int, size: int) -> None:
    with tunnel.observe(Point.ENCLAVE_WG0) as observation:
        tunnel.probe(Node.ENCLAVE, "udp", address(tunnel, "external", family), "7", "--bytes", str(size))
        sizes = [len(packet) for packet in seen(observation, Point.ENCLAVE_WG0)]
    assert len(sizes) >= 2 * (size // 1500)
    assert max(sizes) <= 1500


@FAMILIES
def test_large_datagrams_come_in_as_well(tunnel: Ladder, family: int) -> None:
    port = str(tunnel.topology.application.echo_port)
    tunnel.probe(Node.EXTERNAL, "udp", address(tunnel, "pod", family), port, "--bytes", "9000")


@FAMILIES
def test_a_full_packet_that_must_not_be_fragmented_passes(tunnel: Ladder, family: int) -> None:
    payload = 1500 - (28 if family == 4 else 48)
    tunnel.probe(Node.ENCLAVE, "udp", address(tunnel, "external", family), "7", "--bytes", str(payload), "--df")


ECHO_WITH_MSS = """
import os, select, socket, sys
host, port, mss = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
    sock.settimeout(30)
    sock.connect((host, port))
    sent, received = os.urandom(400_000), b""
    waiting = sent
    while len(received) < len(sent):
        readable, writable, _ = select.select([sock], [sock] if waiting else [], [], 30)
        if writable:
            waiting = waiting[sock.send(waiting[:65536]):]
        received += sock.recv(1 << 16) if readable else b""
    assert received == sent
"""


@FAMILIES
@pytest.mark.parametrize("mss", [88, 512])
def test_a_connection_of_small_segments_loses_nothing(tunnel: Ladder, family: int, mss: int) -> None:
    """The kernels at both ends produce super-packets that the far end would refuse whole."""
    before = tunnel.drops(Node.ENCLAVE), tunnel.drops(Node.POD)
    argv = [sys.executable, "-I", "-S", "-c", ECHO_WITH_MSS, address(tunnel, "external", family), "7", str(mss)]
    tunnel.backend.run(Node.ENCLAVE, argv, deadline=tunnel.backend.deadline(40)).check()
    for reason in ("virtio_gso_size", "kernel", "offloaded"):
        assert tunnel.drops(Node.ENCLAVE).get(reason, 0) == before[0].get(reason, 0)
        assert tunnel.drops(Node.POD).get(reason, 0) == before[1].get(reason, 0)


@FAMILIES
def test_one_byte_more_is_refused_where_it_is_sent(tunnel: Ladder, family: int) -> None:
    payload = 1501 - (28 if family == 4 else 48)
    arguments = ("udp", address(tunnel, "external", family), "7", "--bytes", str(payload), "--df")
    assert "Message too long" in tunnel.try_probe(Node.ENCLAVE, *arguments)["error"]


@pytest.fixture
def narrow_link(tunnel: Ladder) -> Iterator[int]:
    """The node's external link carries 1300 bytes."""
    for node, interface in ((Node.NODE, "uplink0"), (Node.EXTERNAL, "eth0")):
        tunnel.backend.run(node, ["ip", "link", "set", interface, "mtu", "1300"]).check()
    yield 1300
    for node, interface in ((Node.NODE, "uplink0"), (Node.EXTERNAL, "eth0")):
        tunnel.backend.run(node, ["ip", "link", "set", interface, "mtu", "1500"]).check()
    for node in (Node.ENCLAVE, Node.POD):  # the path MTU that both have learned
        tunnel.backend.run(node, ["sh", "-c", "ip route flush cache; ip -6 route flush cache"])


@FAMILIES
def test_a_narrow_link_on_the_way_tells_the_enclave(tunnel: Ladder, narrow_link: int, family: int) -> None:
    external = address(tunnel, "external", family)
    with tunnel.observe(Point.ENCLAVE_WG0) as observation:
        assert tunnel.has_no_answer(Node.ENCLAVE, "udp", external, "7", "--bytes", "1400", "--df")
        packets = seen(observation, Point.ENCLAVE_WG0)
    if family == 4:
        (error,) = [p for p in packets if ICMP in p and (p[ICMP].type, p[ICMP].code) == (3, 4)]
        assert error[ICMP].nexthopmtu == narrow_link
        inner = error[ICMP].payload
    else:
        (error,) = [p for p in packets if ICMPv6PacketTooBig in p]
        assert error[ICMPv6PacketTooBig].mtu == narrow_link
        inner = error[ICMPv6PacketTooBig].payload
    assert inner.src == address(tunnel, "enclave", family)  # translated back inside the error, too
    # The kernel has learned it: the same datagram is refused at once, and TCP continues with smaller segments.
    arguments = ("udp", external, "7", "--bytes", "1400", "--df")
    assert "Message too long" in tunnel.try_probe(Node.ENCLAVE, *arguments)["error"]
    tunnel.probe(Node.ENCLAVE, "tcp", external, "7", "--bytes", "300000")


@pytest.mark.parametrize(("ttl", "expected"), [(1, "relay"), (2, "node")])
@FAMILIES
def test_a_packet_that_dies_on_the_way_tells_the_enclave(tunnel: Ladder, family: int, ttl: int, expected: str) -> None:
    routers = {
        ("relay", 4): tunnel.topology.relay4,
        ("relay", 6): tunnel.topology.relay6,
        ("node", 4): "10.20.0.1",
        ("node", 6): "fd20::1",
    }
    with tunnel.observe(Point.ENCLAVE_WG0) as observation:
        external = address(tunnel, "external", family)
        assert tunnel.has_no_answer(Node.ENCLAVE, "ping", external, "--ttl", str(ttl))
        packets = seen(observation, Point.ENCLAVE_WG0)
    errors = [p for p in packets if (ICMP in p and p[ICMP].type == 11) or ICMPv6TimeExceeded in p]
    assert errors
    assert {error.src for error in errors} == {routers[expected, family]}


@FAMILIES
def test_a_closed_port_outside_tells_the_enclave(tunnel: Ladder, family: int) -> None:
    with tunnel.observe(Point.ENCLAVE_WG0) as observation:
        report = tunnel.try_probe(Node.ENCLAVE, "udp", address(tunnel, "external", family), "9")
        packets = seen(observation, Point.ENCLAVE_WG0)
    assert "Connection refused" in report["error"]
    errors = [p for p in packets if (ICMP in p and p[ICMP].type == 3) or ICMPv6DestUnreach in p]
    assert {error.src for error in errors} == {address(tunnel, "external", family)}


@FAMILIES
def test_a_foreign_source_is_dropped_by_cryptokey_routing(tunnel: Ladder, family: int) -> None:
    source = "10.66.66.66" if family == 4 else "fd66::66"
    layer = IP if family == 4 else IPv6
    before = tunnel.drops(Node.POD)
    point = Point.RELAY_ETH0 if WITHOUT_WG0 else Point.RELAY_WG0
    with tunnel.observe(point) as observation:
        inject(tunnel, layer(src=source, dst=address(tunnel, "external", family)) / UDP(dport=7) / Raw(b"spoofed"))
        settled(tunnel)
        carried = [plain for _, plain in observation.opened_frames() if b"spoofed" in plain]
        arrived = [p for p in seen(observation, point) if b"spoofed" in bytes(p)]
    assert len(carried) == 1
    assert arrived == []
    # At least: the enclave's kernel solicits routers from its link-local address, which is as foreign.
    assert tunnel.drops(Node.POD)["forbidden_source"] >= before.get("forbidden_source", 0) + 1


@FAMILIES
@pytest.mark.parametrize("transport", [UDP, TCP], ids=["udp", "tcp"])
def test_a_bad_checksum_is_answered_by_nobody_and_leaks_no_inner_address(
    tunnel: Ladder, family: int, transport: type
) -> None:
    layer = IP if family == 4 else IPv6
    enclave, external = address(tunnel, "enclave", family), address(tunnel, "external", family)
    packet = layer(src=enclave, dst=external) / transport(sport=41000, dport=7, chksum=0xBAD0) / Raw(b"damaged")
    inside = () if WITHOUT_WG0 else (Point.RELAY_WG0,)
    with tunnel.observe(*inside, Point.RELAY_ETH0, Point.ENCLAVE_WG0) as observation:
        inject(tunnel, packet)
        settled(tunnel)
        arrived = [p for point in inside for p in seen(observation, point) if b"damaged" in bytes(p)]
        outside = seen(observation, Point.RELAY_ETH0)
        inward = [p for p in seen(observation, Point.ENCLAVE_WG0) if p.src == external and p.haslayer(transport)]
        answers = [p for p in inward if p[transport].dport == 41000]
    assert len(arrived) == len(inside)  # the tunnel carries what it is given
    assert answers == []
    assert enclave not in {packet.src for packet in outside}
    assert not WITHOUT_WG0 or [p for p in outside if b"damaged" in bytes(p)] == []


def test_a_bad_header_checksum_goes_no_further_than_the_relay(tunnel: Ladder) -> None:
    topology = tunnel.topology
    packet = IP(src=topology.enclave4, dst=topology.external4, chksum=0xBAD0) / UDP(dport=7) / Raw(b"damaged head")
    with tunnel.observe(Point.RELAY_ETH0) as observation:
        inject(tunnel, packet)
        settled(tunnel)
        outside = [p for p in seen(observation, Point.RELAY_ETH0) if b"damaged head" in bytes(p)]
    assert outside == []


@pytest.mark.parametrize(
    "garbage", [b"\x45", b"\x45\x00" + bytes(18), b"\x60" + bytes(20), b"\x00" * 40, b"\xff" * 1500], ids=len
)
def test_what_is_no_ip_packet_does_not_disturb_the_tunnel(tunnel: Ladder, garbage: bytes) -> None:
    inject(tunnel, garbage)
    settled(tunnel)


@FAMILIES
def test_an_icmp_error_for_a_connection_that_does_not_exist_stays_outside(tunnel: Ladder, family: int) -> None:
    pod, external = address(tunnel, "pod", family), address(tunnel, "external", family)
    layer = IP if family == 4 else IPv6
    error = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    inner = layer(src=pod, dst=external) / UDP(sport=1234, dport=4321) / Raw(b"never sent")
    with tunnel.observe(Point.RELAY_ETH0, Point.ENCLAVE_WG0) as observation:
        tunnel.send_frame(Node.EXTERNAL, layer(src=external, dst=pod) / error / inner)
        tunnel.probe(Node.EXTERNAL, "ping", pod)
        settled(tunnel)
        reached_the_pod = [p for p in seen(observation, Point.RELAY_ETH0) if b"never sent" in bytes(p)]
        leaked = [p for p in seen(observation, Point.ENCLAVE_WG0) if b"never sent" in bytes(p)]
    assert len(reached_the_pod) == 1
    assert leaked == []
