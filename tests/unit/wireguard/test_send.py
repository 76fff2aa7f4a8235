from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import reference
from wgvsock.testing import DevicePair
from wgvsock.testing.pair import ALICE, BOB, drops, ipv4_packet, ipv6_packet
from wgvsock.wireguard import open_into, peer_for_packet, seal_into
from wgvsock.wireguard.constants import MAX_STAGED_PACKETS
from wgvsock.wireguard.events import DropReason
from wgvsock.wireguard.messages import HandshakeInitiation, HandshakeResponse, TransportData
from wgvsock.wireguard.peer import Profile
from wgvsock.wireguard.primitives import Random
from wgvsock.wireguard.timers import Timings

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")


def seal(pair: DevicePair, packet: bytes) -> tuple[int, bytes]:
    """Alice seals on the hot path."""
    room = memoryview(bytearray(packet.ljust(len(packet) + 16, b"\xee")))
    out = memoryview(bytearray(len(packet) + 48))
    length = seal_into(pair.alices_peer, room, len(packet), out, pair.now)
    return length, bytes(out[:length])


# --- routing ---


def test_routing_by_destination() -> None:
    pair = DevicePair()
    assert peer_for_packet(pair.alice, memoryview(PACKET)) is pair.alices_peer
    assert peer_for_packet(pair.alice, memoryview(ipv6_packet("fd00::1", "fd00::2"))) is pair.alices_peer
    assert drops(pair.alice) == {}


def test_routing_looks_behind_the_headroom() -> None:
    pair = DevicePair(packet_headroom=10)
    assert peer_for_packet(pair.alice, memoryview(b"\xff" * 10 + PACKET)) is pair.alices_peer


@pytest.mark.parametrize("destination", ["10.0.0.3", "10.0.0.1", "255.255.255.255"])
def test_a_destination_of_nobody_s_is_dropped(destination: str) -> None:
    pair = DevicePair()
    assert peer_for_packet(pair.alice, memoryview(ipv4_packet("10.0.0.1", destination))) is None
    assert drops(pair.alice) == {DropReason.NO_ROUTE: 1}


@pytest.mark.parametrize(
    "packet", [b"", b"\x45", PACKET[:19], ipv6_packet("fd00::1", "fd00::2")[:39], b"\x00" * 40, b"\x55" * 40]
)
def test_what_is_no_ip_packet_is_dropped(packet: bytes) -> None:
    pair = DevicePair()
    assert peer_for_packet(pair.alice, memoryview(packet)) is None
    pair.alice.send_packet(packet, pair.now)
    assert drops(pair.alice) == {DropReason.MALFORMED_PACKET: 2}
    assert pair.alice.datagrams_to_send() == []


# --- sealing ---


def test_nothing_is_sealed_without_a_session() -> None:
    pair = DevicePair()
    assert seal(pair, PACKET) == (0, b"")
    assert pair.alices_peer.tx_packets == 0


def test_a_sealed_packet_is_what_the_whitepaper_says() -> None:
    pair = DevicePair()
    pair.handshake()
    keypair = pair.bobs_peer.keypairs.current
    assert keypair is not None
    length, message = seal(pair, PACKET)
    assert length == len(message) == 32 + 32
    kind, receiver, counter = struct.unpack_from("<IIQ", message)
    assert (kind, receiver, counter) == (4, keypair.local_index, 1), "the keepalive had counter 0"
    plaintext = bytearray(32)
    keypair.decrypt_into(struct.pack("<4xQ", counter), message[16:], None, plaintext)
    assert bytes(plaintext) == PACKET.ljust(32, b"\0")


class Remembering:
    """A source of entropy that records its output."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.given: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self.given.append(self._random(size))
        return self.given[-1]

    @property
    def key(self) -> bytes:
        return next(value for value in self.given if len(value) == 32)


def test_the_wire_agrees_with_the_second_implementation() -> None:
    pair = DevicePair()
    pair.alice.random, pair.bob.random = alices, bobs = Remembering(pair.alice.random), Remembering(pair.bob.random)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    pair.alice_sends(b"payload")
    assert pair.alice.identity is not None
    assert pair.bob.identity is not None
    (initiation,), (response,) = pair.wire.of(HandshakeInitiation), pair.wire.of(HandshakeResponse)
    transcript = reference.wireguard_handshake(
        initiator_static=pair.alice.identity.private.private_bytes_raw(),
        responder_static=pair.bob.identity.private.private_bytes_raw(),
        initiator_ephemeral=alices.key,
        responder_ephemeral=bobs.key,
        preshared_key=bytes(32),
        timestamp=pair.bobs_peer.handshake.latest_timestamp,
        initiator_index=initiation.sender_index,
        responder_index=response.sender_index,
    )
    key = transcript.initiator_to_responder_key
    assert [sighting.datagram for sighting in pair.wire.sightings] == [
        transcript.initiation,
        transcript.response,
        reference.transport_data(key, response.sender_index, 0, b""),
        reference.transport_data(key, response.sender_index, 1, PACKET),
    ]


@given(st.integers(0, 300))
def test_messages_are_padded_to_16_bytes_with_zeros(size: int) -> None:
    pair = DevicePair()
    pair.handshake()
    packet = ipv4_packet("10.0.0.1", "10.0.0.2", bytes(size))
    length, message = seal(pair, packet)
    assert length == 32 + -(-len(packet) // 16) * 16
    out = memoryview(bytearray(len(message)))
    assert open_into(pair.bob, memoryview(message), ALICE, out, pair.now) == len(packet)
    assert not any(out[len(packet) : len(message) - 32])


def test_the_plain_profile_leaves_the_headroom_at_home() -> None:
    pair = DevicePair(packet_headroom=10)
    pair.handshake()
    length, _ = seal(pair, b"\xff" * 10 + PACKET)
    assert length == 32 + 32


def test_the_gso_profile_sends_the_headroom() -> None:
    pair = DevicePair(packet_headroom=10, profile=Profile.GSO)
    pair.handshake()
    length, _ = seal(pair, bytes(10) + PACKET)
    assert length == 48 + 32


def test_every_message_has_its_own_counter() -> None:
    pair = DevicePair()
    pair.handshake()
    sealed = [TransportData.LAYOUT.unpack_from(seal(pair, PACKET)[1])[2] for _ in range(5)]
    assert sealed == [1, 2, 3, 4, 5]


def test_sealing_counts_bytes_and_packets() -> None:
    pair = DevicePair()
    pair.handshake()
    packets, size = pair.alices_peer.tx_packets, pair.alices_peer.tx_bytes
    seal(pair, PACKET)
    assert (pair.alices_peer.tx_packets, pair.alices_peer.tx_bytes) == (packets + 1, size + 64)


# --- limits ---


def test_a_keypair_does_not_send_after_reject_after_time() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.clock.advance(179.9)
    assert seal(pair, PACKET)[0]
    pair.clock.advance(0.1)
    assert not seal(pair, PACKET)[0]


def test_a_keypair_does_not_send_beyond_reject_after_messages() -> None:
    pair = DevicePair(timings=Timings(reject_after_messages=4))
    pair.handshake()
    assert [bool(seal(pair, PACKET)[0]) for _ in range(5)] == [True, True, True, False, False]


def test_the_initiator_renews_its_session_when_it_sends_after_rekey_after_time() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.clock.advance(119.9)
    pair.alice_sends()
    assert pair.wire.of(HandshakeInitiation) == []
    pair.clock.advance(0.1)
    assert pair.alice_sends() != []
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    pair.alice_sends()
    assert len(pair.wire.of(HandshakeInitiation)) == 1, "the new session is fresh"


def test_the_responder_does_not_renew_by_time() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.clock.advance(150.0)
    assert pair.bob_sends() != []
    assert pair.wire.of(HandshakeInitiation) == []


@pytest.mark.parametrize("sender", [ALICE, BOB])
def test_either_side_renews_after_rekey_after_messages(sender: str) -> None:
    pair = DevicePair(timings=Timings(rekey_after_messages=5))
    pair.handshake()
    pair.clock.advance(6.0)
    for _ in range(8):
        assert (pair.alice_sends() if sender == ALICE else pair.bob_sends()) != []
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    assert pair.wire.sightings[[type(s.message) for s in pair.wire.sightings].index(HandshakeInitiation)].sender == (
        sender
    )


def test_a_keepalive_renews_as_well() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.alices_peer.set_persistent_keepalive(100, pair.now)
    pair.transfer()
    pair.wire.clear()
    pair.run(201.0)
    assert len(pair.wire.of(HandshakeInitiation)) == 1


# --- staging ---


def test_a_packet_waits_for_the_handshake_that_it_starts() -> None:
    pair = DevicePair()
    pair.alice.send_packet(PACKET, pair.now)
    assert len(pair.alices_peer.staged) == 1
    pair.transfer()
    assert pair.bob.packets_to_deliver() == [PACKET]
    assert [type(sighting.message) for sighting in pair.wire.sightings] == [
        HandshakeInitiation,
        HandshakeResponse,
        TransportData,
    ]
    assert pair.wire.keepalives() == [], "the packet itself confirms the session"


def test_staged_packets_leave_in_order_and_the_oldest_gives_way() -> None:
    pair = DevicePair()
    packets = [ipv4_packet("10.0.0.1", "10.0.0.2", bytes([i])) for i in range(MAX_STAGED_PACKETS + 2)]
    for packet in packets:
        pair.alice.send_packet(packet, pair.now)
    assert pair.alice.statistics().peers[pair.alices_peer.public_key].staged_packets == MAX_STAGED_PACKETS
    pair.transfer()
    assert pair.bob.packets_to_deliver() == packets[2:]
    assert drops(pair.alice) == {DropReason.STAGING_FULL: 2}


def test_staged_packets_beyond_the_message_limit_wait_for_the_next_session() -> None:
    pair = DevicePair(timings=Timings(reject_after_messages=3))
    packets = [ipv4_packet("10.0.0.1", "10.0.0.2", bytes([i])) for i in range(5)]
    for packet in packets:
        pair.alice.send_packet(packet, pair.now)
    pair.transfer()
    assert pair.bob.packets_to_deliver() == packets[:3]
    assert len(pair.alices_peer.staged) == 2
    pair.clock.advance(5.5)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert pair.bob.packets_to_deliver() == packets[3:]


def test_a_peer_without_endpoint_and_session_gets_nothing() -> None:
    pair = DevicePair()
    pair.bob.send_packet(ipv4_packet("10.0.0.2", "10.0.0.1"), pair.now)
    assert pair.bob.datagrams_to_send() == []
    assert drops(pair.bob) == {DropReason.NO_ENDPOINT: 1}
    assert len(pair.bobs_peer.staged) == 0


def test_an_endpoint_that_was_taken_away_drops_sealed_packets() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.alices_peer.set_endpoint(None)
    assert pair.alice_sends() == []
    assert drops(pair.alice) == {DropReason.NO_ENDPOINT: 1}


# --- handshakes ---


def test_one_initiation_in_rekey_timeout() -> None:
    pair = DevicePair()
    pair.loses = lambda _: True
    for _ in range(5):
        pair.alices_peer.initiate_handshake(pair.now)
        pair.alice_sends()
        pair.clock.advance(0.9)
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    pair.clock.advance(1.0)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert len(pair.wire.of(HandshakeInitiation)) == 2


def test_a_handshake_needs_an_identity_an_endpoint_and_a_peer() -> None:
    pair = DevicePair()
    pair.bobs_peer.initiate_handshake(pair.now)
    assert pair.bob.datagrams_to_send() == [], "no endpoint"
    pair.alice.set_private_key(None, pair.now)
    pair.alices_peer.initiate_handshake(pair.now)
    assert pair.alice.datagrams_to_send() == [], "no identity"
    pair.alice.remove_peer(pair.alices_peer.public_key)
    pair.alices_peer.initiate_handshake(pair.now)
    assert pair.alice.datagrams_to_send() == [], "no peer"
    assert pair.alice.next_deadline() is None


def test_an_index_in_use_is_not_drawn_again() -> None:
    pair = DevicePair()
    draws = [b"\1\0\0\0", b"\1\0\0\0", b"\2\0\0\0", b"\2\0\0\0", b"\3\0\0\0"]
    other, spare = pair.alice.random, iter(draws)
    pair.alice.random = lambda size: next(spare) if size == 4 else other(size)
    pair.handshake()
    assert list(pair.alice.keypairs_by_index) == [1]
    pair.alices_peer.retry_handshake(pair.now + 1)
    assert list(pair.alice.pending_by_index) == [2]
    assert pair.alice.new_index() == 3
