from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from wgvsock.testing import DevicePair, Eavesdropper
from wgvsock.testing.pair import ALICE, BOB, Sighting, drain_events, drops, ipv4_packet, ipv6_packet
from wgvsock.wireguard.events import DropReason, HandshakeCompleted
from wgvsock.wireguard.messages import HandshakeInitiation, TransportData

if TYPE_CHECKING:
    from wgvsock.wireguard.device import Device


def test_packets_are_what_they_say() -> None:
    four = ipv4_packet("10.0.0.1", "10.0.0.2", b"abc")
    assert four[0] >> 4 == 4
    assert int.from_bytes(four[2:4], "big") == len(four) == 23
    assert ipaddress.ip_address(four[12:16]) == ipaddress.ip_address("10.0.0.1")
    assert ipaddress.ip_address(four[16:20]) == ipaddress.ip_address("10.0.0.2")
    six = ipv6_packet("fd00::1", "fd00::2", b"abc")
    assert six[0] >> 4 == 6
    assert int.from_bytes(six[4:6], "big") == 3
    assert len(six) == 43
    assert ipaddress.ip_address(six[8:24]) == ipaddress.ip_address("fd00::1")
    assert ipaddress.ip_address(six[24:40]) == ipaddress.ip_address("fd00::2")


def test_packets_flow_both_ways() -> None:
    pair = DevicePair()
    assert pair.alice_sends(b"x") == [ipv4_packet("10.0.0.1", "10.0.0.2", b"x")]
    assert pair.bob_sends(b"y") == [ipv4_packet("10.0.0.2", "10.0.0.1", b"y")]
    assert (drops(pair.alice), drops(pair.bob)) == ({}, {})


def test_every_pair_is_the_same() -> None:
    first, second = DevicePair(), DevicePair()
    for pair in (first, second):
        pair.alice_sends()
    assert first.wire.sightings == second.wire.sightings


def test_the_eavesdropper_sees_what_is_lost_too() -> None:
    pair = DevicePair()
    pair.loses = lambda sighting: isinstance(sighting.message, TransportData)
    assert pair.alice_sends() == []
    assert len(pair.wire.data()) == 1
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    pair.wire.clear()
    assert pair.wire.sightings == []


def test_handshake_leaves_no_traces() -> None:
    pair = DevicePair()
    pair.handshake()
    assert pair.alices_peer.has_session(pair.now)
    assert pair.bobs_peer.has_session(pair.now)
    assert pair.wire.sightings == []
    assert drain_events(pair.alice) == drain_events(pair.bob) == []


def test_run_stops_at_the_given_time() -> None:
    pair = DevicePair()
    pair.run(3.25)
    assert pair.now == 1003.25
    pair.loses = lambda _: True
    pair.alice_sends()
    pair.run(100.0)
    assert pair.now == 1103.25
    assert len(pair.wire.sightings) == 18


def test_events_and_drops_can_be_taken() -> None:
    pair = DevicePair()
    pair.alice_sends()
    assert [type(event) for event in drain_events(pair.alice)] == [HandshakeCompleted]
    pair.bob.receive_datagram(b"", ALICE, pair.now)
    assert drops(pair.bob) == {DropReason.MALFORMED_MESSAGE: 1}


def test_what_is_sent_elsewhere_does_not_arrive() -> None:
    pair = DevicePair()
    pair.alices_peer.set_endpoint("nowhere")
    assert pair.alice_sends() == []
    assert pair.wire.sightings[0].receiver == "nowhere"
    assert pair.wire.sightings[0].sender == ALICE


def test_devices_that_never_fall_silent_are_a_bug() -> None:
    pair = DevicePair()
    pair.bob = cast(
        "Device",
        SimpleNamespace(receive_datagram=lambda *_: pair.alice.queue_datagram(BOB, b"again"), datagrams_to_send=list),
    )
    pair.alice.queue_datagram(BOB, b"again")
    with pytest.raises(AssertionError, match="never fall silent"):
        pair.transfer()


def test_an_eavesdropper_tells_messages_apart() -> None:
    wire = Eavesdropper()
    for size in (16, 32):
        wire.sightings.append(Sighting(0.0, ALICE, BOB, TransportData(1, 2, bytes(size)).pack()))
    assert len(wire.of(TransportData)) == 2
    assert len(wire.keepalives()) == len(wire.data()) == 1
