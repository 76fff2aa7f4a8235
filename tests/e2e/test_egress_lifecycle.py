"""The path of an application's outgoing packet: the paper's eight steps, one test each, on one UDP exchange."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import pytest
from scapy.contrib.wireguard import WireguardTransport

from lab.ladder import Ladder
from lab.topology import Node, Point
from lab.watch.observation import Observation, Sighting
from lab.watch.tap import Kind

pytestmark = pytest.mark.lab

INITIAL_TTL = 64
VIRTIO_NET_HEADER = 10  # in front of a packet in the gso profile


@dataclass(frozen=True, slots=True)
class Egress:
    lab: Ladder
    observation: Observation
    enclave: str
    pod: str
    external: str
    local_port: int

    @property
    def port(self) -> int:
        return self.lab.topology.service(Node.EXTERNAL).echo_port

    def request(self, point: Point) -> Sighting:
        (sighting,) = self.observation.sightings(point, to_port=self.port)
        return sighting

    def reply(self, point: Point) -> Sighting:
        (sighting,) = self.observation.sightings(point, from_port=self.port)
        return sighting


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def egress(tunnel: Ladder, request: pytest.FixtureRequest) -> Egress:
    enclave, pod, external = (
        getattr(tunnel.topology, f"{name}{request.param}") for name in ("enclave", "pod", "external")
    )
    port = tunnel.topology.service(Node.EXTERNAL).echo_port
    tunnel.probe(Node.ENCLAVE, "ping", external)  # neighbours known, so that the packet is alone on its way
    with tunnel.observe() as observation:
        report = tunnel.probe(Node.ENCLAVE, "udp", external, str(port), "--text", observation.token)
        observation.wait_for(Point.ENCLAVE_WG0, tunnel.backend.deadline(5), from_port=port)
    return Egress(tunnel, observation, enclave, pod, external, report["local"][1])


def test_step_1_packet_enters_the_enclaves_wg0(egress: Egress) -> None:
    packet = egress.request(Point.ENCLAVE_WG0)
    assert packet.outgoing
    assert (packet.source, packet.destination) == (egress.enclave, egress.external)
    assert packet.ports == (egress.local_port, egress.port)
    assert packet.ttl == INITIAL_TTL
    assert packet.checksums_right
    assert packet.payload == egress.observation.token.encode()
    route = egress.lab.backend.run(Node.ENCLAVE, ["ip", "route", "get", egress.external]).check().stdout
    assert b" dev wg0 " in route


def test_step_2_encrypted_with_the_session_key(egress: Egress) -> None:
    before = egress.request(Point.ENCLAVE_WG0).data
    (plaintext,) = [
        plaintext
        for frame, plaintext in egress.observation.opened_frames()
        if frame.kind is Kind.TO_RELAY and egress.observation.token.encode() in plaintext
    ]
    begin = VIRTIO_NET_HEADER if plaintext[0] >> 4 == 0 else 0
    end = begin + len(before)
    assert plaintext[begin:end] == before
    assert len(plaintext) - end < 16
    assert not any(plaintext[end:])


def test_step_3_sent_over_vsock_with_nothing_readable(egress: Egress) -> None:
    frames = [frame for frame in egress.observation.frames() if frame.kind is Kind.TO_RELAY]
    transport = [frame for frame in frames if frame.name == "transport data"]
    assert transport
    for frame in transport:
        message = frame.packet[WireguardTransport]
        assert frame.packet.length == len(frame.payload) == 16 + len(message.encrypted_encapsulated_packet)
    raw = egress.observation.raw_vsock_bytes()
    assert not egress.observation.readable_at_vsock()
    for address in (egress.enclave, egress.external):
        # 16 random bytes equal an address's 4 in a few thousand places with a chance of about one in a million.
        assert ipaddress.ip_address(address).packed not in raw
    assert egress.observation.request_was_carried(egress.port)


def test_step_4_relay_receives_and_decrypts(egress: Egress) -> None:
    assert egress.request(Point.RELAY_WG0).data == egress.request(Point.VSOCK).data
    assert egress.observation.in_order(egress.request(Point.VSOCK), egress.request(Point.RELAY_WG0))


def test_step_5_injected_into_the_pods_wg0(egress: Egress) -> None:
    packet = egress.request(Point.RELAY_WG0)
    assert packet.outgoing is False
    assert packet.data == egress.request(Point.ENCLAVE_WG0).data
    assert packet.checksums_right


def test_step_6_routed_by_the_pod(egress: Egress) -> None:
    inside, outside = egress.request(Point.RELAY_WG0), egress.request(Point.RELAY_ETH0)
    assert outside.outgoing
    assert outside.destination == inside.destination
    assert outside.ttl == inside.ttl - 1


def test_step_7_masquerade_rewrites_the_source_and_nothing_else(egress: Egress) -> None:
    inside, outside = egress.request(Point.RELAY_WG0), egress.request(Point.RELAY_ETH0)
    assert (inside.source, outside.source) == (egress.enclave, egress.pod)
    assert outside.ports == inside.ports
    assert outside.payload == inside.payload
    assert len(outside.data) == len(inside.data)
    assert outside.checksums_right
    assert not outside.checksum_pending
    translated = inside.layers.copy()
    translated.src = egress.pod
    if translated.version == 4:
        translated.ttl -= 1
        del translated.chksum
    else:
        translated.hlim -= 1
    del translated.payload.chksum
    assert bytes(translated) == outside.data


def test_step_8_leaves_through_eth0_and_the_reply_finds_its_way_back(egress: Egress) -> None:
    outside = egress.request(Point.EXTERNAL_ETH0)
    assert outside.outgoing is False
    assert (outside.source, outside.destination) == (egress.pod, egress.external)
    assert outside.ttl == INITIAL_TTL - 2  # the pod and the node
    assert outside.checksums_right
    way_back = {
        Point.EXTERNAL_ETH0: (egress.pod, INITIAL_TTL),
        Point.RELAY_ETH0: (egress.pod, INITIAL_TTL - 1),
        Point.RELAY_WG0: (egress.enclave, INITIAL_TTL - 2),
        Point.VSOCK: (egress.enclave, INITIAL_TTL - 2),
        Point.ENCLAVE_WG0: (egress.enclave, INITIAL_TTL - 2),
    }
    for point, (destination, ttl) in way_back.items():
        reply = egress.reply(point)
        assert (reply.source, reply.destination, reply.ttl) == (egress.external, destination, ttl), point
        assert reply.ports == (egress.port, egress.local_port), point
        assert reply.payload == egress.observation.token.encode(), point
        assert reply.checksums_right, point
    assert egress.observation.in_order(egress.request(Point.ENCLAVE_WG0), *map(egress.reply, way_back))
