"""The path of a client's incoming packet: the paper's nine steps, one test each, on one UDP exchange."""

from __future__ import annotations

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
class Ingress:
    lab: Ladder
    observation: Observation
    enclave: str
    pod: str
    external: str
    local_port: int

    @property
    def port(self) -> int:
        return self.lab.topology.application.echo_port

    def request(self, point: Point) -> Sighting:
        (sighting,) = self.observation.sightings(point, to_port=self.port)
        return sighting

    def reply(self, point: Point) -> Sighting:
        (sighting,) = self.observation.sightings(point, from_port=self.port)
        return sighting


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def ingress(tunnel: Ladder, request: pytest.FixtureRequest) -> Ingress:
    enclave, pod, external = (
        getattr(tunnel.topology, f"{name}{request.param}") for name in ("enclave", "pod", "external")
    )
    port = tunnel.topology.application.echo_port
    tunnel.probe(Node.EXTERNAL, "ping", pod)
    with tunnel.observe() as observation:
        report = tunnel.probe(Node.EXTERNAL, "udp", pod, str(port), "--text", observation.token)
        observation.wait_for(Point.EXTERNAL_ETH0, tunnel.backend.deadline(5), from_port=port)
    return Ingress(tunnel, observation, enclave, pod, external, report["local"][1])


def test_step_1_reaches_the_pods_eth0(ingress: Ingress) -> None:
    packet = ingress.request(Point.RELAY_ETH0)
    assert packet.outgoing is False
    assert (packet.source, packet.destination) == (ingress.external, ingress.pod)
    assert packet.ports == (ingress.local_port, ingress.port)
    assert packet.ttl == INITIAL_TTL - 1
    assert packet.checksums_right


def test_step_2_destination_rewritten_to_the_enclave_and_nothing_else(ingress: Ingress) -> None:
    outside, inside = ingress.request(Point.RELAY_ETH0), ingress.request(Point.RELAY_WG0)
    assert (outside.destination, inside.destination) == (ingress.pod, ingress.enclave)
    assert inside.source == ingress.external  # the application sees its client
    assert inside.payload == outside.payload == ingress.observation.token.encode()
    assert inside.ports == outside.ports
    translated = outside.layers.copy()
    translated.dst = ingress.enclave
    if translated.version == 4:
        translated.ttl -= 1
        del translated.chksum
    else:
        translated.hlim -= 1
    del translated.payload.chksum
    assert bytes(translated) == inside.data


def test_step_3_the_route_says_wg0(ingress: Ingress) -> None:
    route = ingress.lab.backend.run(Node.POD, ["ip", "route", "get", ingress.enclave]).check().stdout
    assert b" dev wg0 " in route
    packet = ingress.request(Point.RELAY_WG0)
    assert packet.outgoing
    assert packet.ttl == INITIAL_TTL - 2


def test_step_4_the_tun_hands_it_to_the_relay(ingress: Ingress) -> None:
    handed, encrypted = ingress.request(Point.RELAY_WG0), ingress.request(Point.VSOCK)
    assert encrypted.data == handed.data
    assert encrypted.checksums_right  # whatever was pending on the interface is complete in the tunnel
    assert ingress.observation.in_order(handed, encrypted)


def test_step_5_encrypted_with_the_session_key(ingress: Ingress) -> None:
    before = ingress.request(Point.RELAY_WG0).data
    (plaintext,) = [
        plaintext
        for frame, plaintext in ingress.observation.opened_frames()
        if frame.kind is Kind.TO_ENCLAVE and ingress.observation.token.encode() in plaintext
    ]
    begin = VIRTIO_NET_HEADER if plaintext[0] >> 4 == 0 else 0
    end = begin + len(before)
    assert plaintext[begin:end] == before
    assert len(plaintext) - end < 16
    assert not any(plaintext[end:])


def test_step_6_sent_over_vsock_with_nothing_readable(ingress: Ingress) -> None:
    transport = [
        frame
        for frame in ingress.observation.frames()
        if frame.kind is Kind.TO_ENCLAVE and frame.name == "transport data"
    ]
    assert transport
    for frame in transport:
        message = frame.packet[WireguardTransport]
        assert frame.packet.length == len(frame.payload) == 16 + len(message.encrypted_encapsulated_packet)
    assert not ingress.observation.readable_at_vsock()
    assert ingress.observation.request_was_carried(ingress.port)


def test_step_7_enclave_receives_and_decrypts(ingress: Ingress) -> None:
    assert ingress.request(Point.ENCLAVE_WG0).data == ingress.request(Point.VSOCK).data
    assert ingress.observation.in_order(ingress.request(Point.VSOCK), ingress.request(Point.ENCLAVE_WG0))


def test_step_8_injected_into_the_enclaves_wg0(ingress: Ingress) -> None:
    packet = ingress.request(Point.ENCLAVE_WG0)
    assert packet.outgoing is False
    assert (packet.source, packet.destination) == (ingress.external, ingress.enclave)
    assert packet.ttl == INITIAL_TTL - 2
    assert packet.checksums_right


def test_step_9_the_application_answers_and_the_reply_finds_its_way_back(ingress: Ingress) -> None:
    way_back = {
        Point.ENCLAVE_WG0: (ingress.enclave, INITIAL_TTL),
        Point.VSOCK: (ingress.enclave, INITIAL_TTL),
        Point.RELAY_WG0: (ingress.enclave, INITIAL_TTL),
        Point.RELAY_ETH0: (ingress.pod, INITIAL_TTL - 1),
        Point.EXTERNAL_ETH0: (ingress.pod, INITIAL_TTL - 2),
    }
    for point, (source, ttl) in way_back.items():
        reply = ingress.reply(point)
        assert (reply.source, reply.destination, reply.ttl) == (source, ingress.external, ttl), point
        assert reply.ports == (ingress.port, ingress.local_port), point
        assert reply.payload == ingress.observation.token.encode(), point
        assert reply.checksums_right, point
    assert ingress.observation.in_order(ingress.request(Point.EXTERNAL_ETH0), *map(ingress.reply, way_back))
