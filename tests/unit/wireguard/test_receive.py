from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgvsock.testing import DevicePair, SeededRandom
from wgvsock.testing.pair import ALICE, BOB, Sighting, drain_events, drops, ipv4_packet, ipv6_packet
from wgvsock.wireguard import open_into
from wgvsock.wireguard.constants import (
    HANDSHAKE_INITIATION_SIZE,
    RATE_LIMIT_BURST,
    REJECT_AFTER_MESSAGES,
    STRANGERS_BURST,
)
from wgvsock.wireguard.device import Device
from wgvsock.wireguard.events import Dropped, DropReason, EndpointChanged, HandshakeCompleted
from wgvsock.wireguard.messages import CookieReply, HandshakeInitiation, HandshakeResponse, TransportData
from wgvsock.wireguard.peer import Profile

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")


def sealed_by_alice(pair: DevicePair, plaintext: bytes) -> bytes:
    """Transport data of Alice's with any plaintext, honest or not."""
    keypair = pair.alices_peer.keypairs.current
    assert keypair is not None
    counter = keypair.sending_counter
    keypair.sending_counter += 1
    message = bytearray(len(plaintext) + 32)
    struct.pack_into("<IIQ", message, 0, 4, keypair.remote_index, counter)
    keypair.encrypt_into(struct.pack("<4xQ", counter), plaintext, None, memoryview(message)[16:])
    return bytes(message)


def bob_opens(pair: DevicePair, message: bytes, *, room: int | None = None) -> bytes | None:
    """What Bob's hot path makes of a datagram."""
    size = pair.bob.packet_headroom + len(message) if room is None else room
    out = memoryview(bytearray(b"\xee" * size))
    length = open_into(pair.bob, memoryview(message), ALICE, out, pair.now)
    return bytes(out[:length]) if length else None


def established(**options: object) -> DevicePair:
    pair = DevicePair(**options)  # type: ignore[arg-type]
    pair.handshake()
    return pair


def last_drop(device: Device) -> Dropped:
    event = drain_events(device)[-1]
    assert isinstance(event, Dropped)
    return event


# --- transport data ---


def test_a_packet_arrives() -> None:
    pair = established()
    assert bob_opens(pair, sealed_by_alice(pair, PACKET.ljust(32, b"\0"))) == PACKET
    assert drops(pair.bob) == {}


@pytest.mark.parametrize("size", [0, 1, 31])
def test_less_than_a_keepalive_is_malformed(size: int) -> None:
    pair = established()
    assert bob_opens(pair, b"\4".ljust(size, b"\0")[:size]) is None
    assert last_drop(pair.bob) == Dropped(DropReason.MALFORMED_MESSAGE, ALICE)


def test_an_unknown_index_is_dropped() -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    assert bob_opens(pair, message[:4] + b"\0\0\0\0" + message[8:]) is None
    assert last_drop(pair.bob) == Dropped(DropReason.UNKNOWN_INDEX, ALICE)


def test_an_expired_keypair_does_not_receive() -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    pair.clock.advance(180.0)
    assert bob_opens(pair, message) is None
    assert last_drop(pair.bob) == Dropped(DropReason.EXPIRED_KEYPAIR, ALICE, pair.bobs_peer)


@pytest.mark.parametrize("counter", [REJECT_AFTER_MESSAGES, 2**64 - 1])
def test_a_counter_beyond_the_limit_is_dropped(counter: int) -> None:
    pair = established()
    keypair = pair.alices_peer.keypairs.current
    assert keypair is not None
    keypair.sending_counter = counter
    assert bob_opens(pair, sealed_by_alice(pair, PACKET)) is None
    assert drops(pair.bob) == {DropReason.EXPIRED_KEYPAIR: 1}


def test_the_greatest_counter_arrives() -> None:
    pair = established()
    keypair = pair.alices_peer.keypairs.current
    assert keypair is not None
    keypair.sending_counter = REJECT_AFTER_MESSAGES - 1
    assert bob_opens(pair, sealed_by_alice(pair, PACKET)) == PACKET


def test_a_buffer_that_is_too_small_is_not_overrun() -> None:
    pair = established()
    assert bob_opens(pair, sealed_by_alice(pair, PACKET), room=len(PACKET) - 1) is None
    assert drops(pair.bob) == {DropReason.OVERSIZED: 1}
    assert bob_opens(pair, sealed_by_alice(pair, PACKET), room=len(PACKET)) == PACKET


@given(st.data())
@settings(max_examples=30)
def test_a_changed_bit_is_dropped_and_the_true_message_still_arrives(data: st.DataObject) -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    bit = data.draw(st.integers(8 * 8, len(message) * 8 - 1))
    forged = bytearray(message)
    forged[bit // 8] ^= 1 << bit % 8
    assert bob_opens(pair, bytes(forged)) is None
    assert set(drops(pair.bob)) <= {DropReason.INVALID_TAG, DropReason.EXPIRED_KEYPAIR}
    assert bob_opens(pair, message) == PACKET


def test_a_repetition_is_dropped() -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    assert bob_opens(pair, message) == PACKET
    received = pair.bobs_peer.rx_packets
    assert bob_opens(pair, message) is None
    assert last_drop(pair.bob) == Dropped(DropReason.REPLAYED_COUNTER, ALICE, pair.bobs_peer)
    assert pair.bobs_peer.rx_packets == received


def test_packets_may_overtake_each_other() -> None:
    pair = established()
    messages = [sealed_by_alice(pair, ipv4_packet("10.0.0.1", "10.0.0.2", bytes([i]))) for i in range(5)]
    assert all(bob_opens(pair, message) for message in reversed(messages))
    assert drops(pair.bob) == {}


def test_receiving_is_noted() -> None:
    pair = established()
    packets, size = pair.bobs_peer.rx_packets, pair.bobs_peer.rx_bytes
    pair.clock.advance(3.0)
    message = sealed_by_alice(pair, PACKET)
    bob_opens(pair, message)
    assert pair.bobs_peer.last_authenticated == pair.now
    assert (pair.bobs_peer.rx_packets, pair.bobs_peer.rx_bytes) == (packets + 1, size + len(message))


def test_a_keepalive_is_no_packet() -> None:
    pair = established()
    pair.clock.advance(1.0)
    assert bob_opens(pair, sealed_by_alice(pair, b"")) is None
    assert drops(pair.bob) == {}
    assert pair.bobs_peer.last_authenticated == pair.now


# --- the packet inside ---


def test_padding_and_anything_behind_the_packet_is_trimmed() -> None:
    pair = established()
    for packet in (PACKET, ipv6_packet("fd00::1", "fd00::2", b"payload")):
        assert bob_opens(pair, sealed_by_alice(pair, packet + b"\xff" * 100)) == packet


@pytest.mark.parametrize(
    "plaintext",
    [
        b"\0" * 32,
        b"\x15" * 64,
        PACKET[:16],
        PACKET[:2] + (len(PACKET) + 1).to_bytes(2, "big") + PACKET[4:],
        PACKET[:2] + (19).to_bytes(2, "big") + PACKET[4:],
        ipv6_packet("fd00::1", "fd00::2")[:32],
        ipv6_packet("fd00::1", "fd00::2", b"12345")[:44],
    ],
    ids=["zeros", "no version", "short IPv4", "long length", "length below the header", "short IPv6", "long IPv6"],
)
@pytest.mark.parametrize("profile", Profile)
def test_a_dishonest_packet_is_dropped(plaintext: bytes, profile: Profile) -> None:
    pair = established(packet_headroom=10, profile=profile)
    in_front = bytes(10) if profile is Profile.GSO else b""
    assert bob_opens(pair, sealed_by_alice(pair, in_front + plaintext)) is None
    assert last_drop(pair.bob) == Dropped(DropReason.MALFORMED_PACKET, ALICE, pair.bobs_peer)


@pytest.mark.parametrize("size", [1, 9, 10])
def test_a_gso_plaintext_that_ends_with_its_header_is_dropped(size: int) -> None:
    pair = established(packet_headroom=10, profile=Profile.GSO)
    assert bob_opens(pair, sealed_by_alice(pair, bytes(size))) is None
    assert drops(pair.bob) == {DropReason.MALFORMED_PACKET: 1}


@pytest.mark.parametrize("source", ["10.0.0.3", "10.0.0.2", "127.0.0.1"])
def test_a_source_that_is_not_the_sender_s_is_dropped(source: str) -> None:
    pair = established()
    assert bob_opens(pair, sealed_by_alice(pair, ipv4_packet(source, "10.0.0.2"))) is None
    assert last_drop(pair.bob) == Dropped(DropReason.FORBIDDEN_SOURCE, ALICE, pair.bobs_peer)
    assert bob_opens(pair, sealed_by_alice(pair, ipv6_packet("fd00::3", "fd00::2"))) is None
    assert drops(pair.bob) == {DropReason.FORBIDDEN_SOURCE: 2}


def test_the_plain_profile_puts_an_empty_header_in_front() -> None:
    pair = established(packet_headroom=10)
    assert bob_opens(pair, sealed_by_alice(pair, PACKET)) == bytes(10) + PACKET


def test_the_gso_profile_hands_the_header_on() -> None:
    pair = established(packet_headroom=10, profile=Profile.GSO)
    header = struct.pack("<BBHHHH", 2, 0, 0, 0, 0, 0)  # DATA_VALID: the checksum has been looked at
    assert bob_opens(pair, sealed_by_alice(pair, header + PACKET + bytes(5))) == header + PACKET


def test_the_gso_profile_takes_plain_packets_too() -> None:
    pair = established(packet_headroom=10, profile=Profile.GSO)
    for packet in (PACKET, ipv6_packet("fd00::1", "fd00::2", b"payload")):
        assert bob_opens(pair, sealed_by_alice(pair, packet + bytes(9))) == bytes(10) + packet


def test_a_bad_virtio_header_is_dropped_and_counted_by_its_fault() -> None:
    pair = established(packet_headroom=10, profile=Profile.GSO)
    for header in (struct.pack("<BBHHHH", 0, 3, 0, 0, 0, 0), struct.pack("<BBHHHH", 8, 0, 0, 0, 0, 0)):
        assert bob_opens(pair, sealed_by_alice(pair, header + PACKET)) is None
    statistics = pair.bob.statistics()
    assert statistics.drops == {DropReason.BAD_VIRTIO_HEADER: 2}
    assert statistics.virtio_header_drops == {"virtio_gso_type": 1, "virtio_flags": 1}


def test_a_plain_peer_cannot_send_a_virtio_header() -> None:
    pair = established(packet_headroom=10)
    assert bob_opens(pair, sealed_by_alice(pair, bytes(10) + PACKET)) is None
    assert drops(pair.bob) == {DropReason.MALFORMED_PACKET: 1}


def test_a_large_packet_is_one_message() -> None:
    pair = established(packet_headroom=10, profile=Profile.GSO)
    packet = bytes(10) + ipv4_packet("10.0.0.1", "10.0.0.2", bytes(65515))
    pair.alice.send_packet(packet, pair.now)
    pair.transfer()
    assert pair.bob.packets_to_deliver() == [packet]
    assert len(pair.wire.data()) == 1


# --- sessions ---


def test_the_responder_sends_only_after_the_initiator_used_the_keys() -> None:
    pair = DevicePair()
    pair.loses = lambda sighting: isinstance(sighting.message, TransportData)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert pair.alices_peer.has_session(pair.now)
    assert not pair.bobs_peer.has_session(pair.now)
    assert [event for event in drain_events(pair.bob) if isinstance(event, HandshakeCompleted)] == []
    pair.loses = lambda _: False
    pair.clock.advance(2.0)
    pair.alice_sends()
    assert pair.bobs_peer.has_session(pair.now)
    assert drain_events(pair.bob) == [HandshakeCompleted(pair.bobs_peer, initiator=False, duration=2.0)]


def test_what_the_responder_staged_leaves_with_the_confirmation() -> None:
    pair = DevicePair()
    pair.loses = lambda sighting: isinstance(sighting.message, TransportData)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    pair.loses = lambda sighting: sighting.sender == BOB
    assert pair.bob_sends(b"staged") == [], "Bob's own initiation is lost"
    pair.loses = lambda _: False
    pair.alice_sends()
    assert pair.alice.packets_to_deliver() == [ipv4_packet("10.0.0.2", "10.0.0.1", b"staged")]


def test_a_session_that_only_receives_is_renewed_once_before_it_ends() -> None:
    pair = established()
    pair.clock.advance(164.9)
    pair.bob_sends()
    assert pair.wire.of(HandshakeInitiation) == []
    pair.clock.advance(0.2)
    pair.loses = lambda sighting: isinstance(sighting.message, HandshakeInitiation)
    for _ in range(3):
        assert pair.bob_sends() != []
    assert len(pair.wire.of(HandshakeInitiation)) == 1


def test_roaming() -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    pair.bob.receive_datagram(message, "alice's new address", pair.now)
    assert pair.bobs_peer.endpoint == "alice's new address"
    assert drain_events(pair.bob) == [EndpointChanged(pair.bobs_peer, ALICE, "alice's new address")]
    pair.bob.send_packet(ipv4_packet("10.0.0.2", "10.0.0.1"), pair.now)
    assert [endpoint for endpoint, _ in pair.bob.datagrams_to_send()] == ["alice's new address"]


@pytest.mark.parametrize("kind", ["forged", "replayed"])
def test_only_authentic_and_new_messages_move_the_endpoint(kind: str) -> None:
    pair = established()
    message = sealed_by_alice(pair, PACKET)
    if kind == "replayed":
        bob_opens(pair, message)
    else:
        message = message[:-1] + bytes([message[-1] ^ 1])
    pair.bob.receive_datagram(message, "mallory", pair.now)
    assert pair.bobs_peer.endpoint == ALICE


# --- handshake messages ---


def alices_initiation(pair: DevicePair) -> bytes:
    pair.alices_peer.retry_handshake(pair.now)
    ((_, datagram),) = pair.alice.datagrams_to_send()
    return datagram


def test_without_an_identity_handshakes_are_dropped() -> None:
    pair = DevicePair()
    message = alices_initiation(pair)
    pair.bob.set_private_key(None, pair.now)
    assert bob_opens(pair, message) is None
    assert drops(pair.bob) == {DropReason.NO_IDENTITY: 1}


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 255])
def test_a_message_of_a_wrong_size_or_type_is_malformed(kind: int) -> None:
    pair = DevicePair()
    assert bob_opens(pair, kind.to_bytes(4, "little").ljust(100, b"\0")) is None
    assert last_drop(pair.bob) == Dropped(DropReason.MALFORMED_MESSAGE, ALICE)


def test_a_message_for_another_key_is_dropped_by_mac1() -> None:
    pair = DevicePair()
    message = bytearray(alices_initiation(pair))
    message[-20] ^= 1
    assert bob_opens(pair, bytes(message)) is None
    assert last_drop(pair.bob) == Dropped(DropReason.INVALID_MAC1, ALICE)
    assert pair.bob.datagrams_to_send() == []


def test_a_stranger_gets_no_answer() -> None:
    pair = DevicePair()
    message = alices_initiation(pair)
    pair.bob.remove_peer(pair.bobs_peer.public_key)
    assert bob_opens(pair, message) is None
    assert last_drop(pair.bob) == Dropped(DropReason.UNKNOWN_PEER, ALICE)
    assert pair.bob.datagrams_to_send() == []


def test_a_forged_handshake_message_gets_no_answer() -> None:
    pair = DevicePair()
    initiation = HandshakeInitiation(1, bytes(range(32)), bytes(48), bytes(28))
    forged = pair.alices_peer.cookie.add_macs(initiation.pack(), pair.now)
    assert bob_opens(pair, forged) is None
    assert last_drop(pair.bob) == Dropped(DropReason.INVALID_HANDSHAKE, ALICE)
    assert pair.bob.datagrams_to_send() == []


def test_a_replayed_initiation_gets_no_answer() -> None:
    pair = DevicePair()
    message = alices_initiation(pair)
    bob_opens(pair, message)
    assert len(pair.bob.datagrams_to_send()) == 1
    pair.clock.advance(1.0)
    pair.bob.receive_datagram(message, "mallory", pair.now)
    assert drops(pair.bob) == {DropReason.REPLAYED_INITIATION: 1}
    assert pair.bobs_peer.endpoint == ALICE
    assert pair.bob.datagrams_to_send() == []


def test_a_response_that_nobody_asked_for_is_dropped() -> None:
    pair = DevicePair()
    response = HandshakeResponse(1, 2, bytes(32), bytes(16))
    message = pair.bobs_peer.cookie.add_macs(response.pack(), pair.now)
    pair.alice.receive_datagram(message, BOB, pair.now)
    assert drops(pair.alice) == {DropReason.UNEXPECTED_RESPONSE: 1}


def test_a_response_from_elsewhere_moves_the_endpoint() -> None:
    pair = DevicePair()
    bob_opens(pair, alices_initiation(pair))
    ((_, response),) = pair.bob.datagrams_to_send()
    pair.alice.receive_datagram(response, "bob's new address", pair.now)
    assert pair.alices_peer.endpoint == "bob's new address"
    assert pair.alices_peer.last_authenticated == pair.now


# --- under load ---


def busy_pair() -> DevicePair:
    """A pair in which every handshake message is one too many."""
    return DevicePair(load_threshold=0)


def test_under_load_a_cookie_is_demanded_and_then_accepted() -> None:
    pair = busy_pair()
    pair.alice_sends(b"first")
    assert [type(sighting.message) for sighting in pair.wire.sightings] == [HandshakeInitiation, CookieReply]
    assert pair.wire.of(HandshakeInitiation)[0].mac2 == bytes(16)
    assert drops(pair.bob) == {DropReason.COOKIE_DEMANDED: 1}
    assert pair.bob.statistics().cookie_replies_sent == 1
    assert pair.bobs_peer.last_authenticated == float("-inf"), "no X25519 was spent on it"
    pair.run(6.0)
    assert pair.wire.of(HandshakeInitiation)[1].mac2 != bytes(16)
    # Alice is under load as well: she asks for a cookie before she reads Bob's response.
    assert len(pair.wire.of(HandshakeResponse)) == 1
    pair.run(12.0)
    assert pair.alices_peer.has_session(pair.now)
    assert pair.bob.packets_to_deliver() == [ipv4_packet("10.0.0.1", "10.0.0.2", b"first")]


def test_a_cookie_is_no_use_from_another_address() -> None:
    pair = busy_pair()
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    pair.clock.advance(6.0)
    message = alices_initiation(pair)
    pair.bob.receive_datagram(message, "mallory", pair.now)
    assert drops(pair.bob) == {DropReason.COOKIE_DEMANDED: 2}
    assert pair.bob.datagrams_to_send()[0][0] == "mallory"


def test_a_source_with_a_cookie_is_still_limited() -> None:
    pair = busy_pair()
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    outcomes = []
    for _ in range(8):
        bob_opens(pair, alices_initiation(pair))
        outcomes.append(drops(pair.bob).get(DropReason.RATE_LIMITED, 0))
    assert outcomes == [0, 0, 0, 0, 0, 1, 2, 3]


def test_load_below_the_threshold_asks_for_no_cookie() -> None:
    pair = DevicePair(load_threshold=3)
    pair.loses = lambda sighting: sighting.sender == BOB
    replies = []
    for _ in range(6):
        pair.clock.advance(0.1)
        pair.alices_peer.retry_handshake(pair.now)
        pair.transfer()
        replies.append(pair.bob.statistics().cookie_replies_sent)
    assert replies == [0, 0, 0, 1, 2, 3]


@dataclass(eq=False)
class Stream:
    """A link over a stream. All of them come from one address."""

    stream: int
    trusted: bool = False
    address: str = "vsock:3:1024"


def floods(pair: DevicePair, stream: Stream, count: int) -> int:
    """Send Bob initiations of no peer. Returns how many X25519 multiplications they cost him."""
    mallory = Device(random=SeededRandom("mallory"), wall_clock=pair.clock.wall_clock)
    mallory.set_private_key(bytes(range(32)), pair.now)
    mallory.add_peer(pair.bob.public_key or b"", endpoint=BOB, now=pair.now).initiate_handshake(pair.now)
    ((_, message),) = mallory.datagrams_to_send()
    before = drops(pair.bob).get(DropReason.UNKNOWN_PEER, 0)
    for _ in range(count):
        pair.bob.receive_datagram(message, stream, pair.now)
    return drops(pair.bob).get(DropReason.UNKNOWN_PEER, 0) - before


@pytest.mark.parametrize("trusted", [True, False])
def test_a_flood_beside_it_costs_a_peer_s_stream_no_handshake(trusted: bool) -> None:
    pair = busy_pair()
    for number in range(12):
        pair.clock.advance(0.5)
        floods(pair, Stream(1), 200)
        stream = Stream(2) if trusted else Stream(100 + number)
        stream.trusted = trusted
        pair.bob.receive_datagram(alices_initiation(pair), stream, pair.now)
        assert pair.bobs_peer.last_authenticated == pair.now
        pair.bob.datagrams_to_send()
    assert pair.bob.statistics().cookie_replies_sent == 0, "a connected stream is asked for no cookie"


def test_strangers_cost_a_bounded_number_of_multiplications_and_no_peer_his_share() -> None:
    pair = busy_pair()
    assert floods(pair, Stream(1), 100) == 1
    assert sum(floods(pair, Stream(number), 1) for number in range(2, 3 * STRANGERS_BURST)) == STRANGERS_BURST - 1
    pair.bob.receive_datagram(alices_initiation(pair), Stream(0, trusted=True), pair.now)
    assert pair.bobs_peer.last_authenticated == pair.now


def test_a_peer_s_stream_is_limited_as_an_address_is() -> None:
    pair = busy_pair()
    stream = Stream(1, trusted=True)
    assert floods(pair, stream, 100) == RATE_LIMIT_BURST


def test_where_an_authenticated_message_without_a_packet_came_from() -> None:
    pair = established()
    pair.bob.authenticated_endpoint = None
    pair.bob.receive_datagram(b"garbage", "mallory", pair.now)
    bob_opens(pair, sealed_by_alice(pair, PACKET))
    assert pair.bob.authenticated_endpoint is None
    pair.bob.receive_datagram(sealed_by_alice(pair, b""), "keepalive", pair.now)
    assert pair.bob.authenticated_endpoint == "keepalive"
    pair.clock.advance(1.0)
    pair.bob.receive_datagram(alices_initiation(pair), "initiation", pair.now)
    assert pair.bob.authenticated_endpoint == "initiation"


@pytest.mark.parametrize("index", ["pending", "session"])
def test_a_cookie_reply_is_taken_for_either_handshake_message(index: str) -> None:
    pair = established()
    if index == "pending":
        message = alices_initiation(pair)
        device, peer, checker, endpoint = pair.alice, pair.alices_peer, pair.bob.cookie_checker, BOB
        sender_index = peer.handshake.pending.local_index if peer.handshake.pending else 0
    else:
        pair.clock.advance(1.0)
        bob_opens(pair, alices_initiation(pair))
        ((_, message),) = pair.bob.datagrams_to_send()
        device, peer, checker, endpoint = pair.bob, pair.bobs_peer, pair.alice.cookie_checker, ALICE
        sender_index = struct.unpack_from("<I", message, 4)[0]
    reply = checker.create_reply(message, sender_index, b"source", pair.now)
    device.receive_datagram(reply.pack(), endpoint, pair.now)
    assert drops(device) == {}
    assert peer.cookie.add_macs(message, pair.now)[-16:] != bytes(16)


def test_a_false_cookie_reply_is_dropped() -> None:
    pair = DevicePair()
    message = alices_initiation(pair)
    pending = pair.alices_peer.handshake.pending
    assert pending is not None
    reply = pair.bob.cookie_checker.create_reply(message, pending.local_index, b"source", pair.now)
    for bad in (replace(reply, receiver_index=pending.local_index ^ 1), replace(reply, encrypted_cookie=bytes(32))):
        pair.alice.receive_datagram(bad.pack(), BOB, pair.now)
    assert drops(pair.alice) == {DropReason.INVALID_COOKIE_REPLY: 2}


# --- garbage ---


@given(st.lists(st.binary(max_size=200), max_size=10), st.integers(0, 5))
def test_garbage_never_raises_and_never_gets_an_answer(datagrams: list[bytes], kind: int) -> None:
    pair = established()
    for data in datagrams:
        pair.bob.receive_datagram(kind.to_bytes(4, "little") + data, "mallory", pair.now)
        pair.bob.receive_datagram(data, "mallory", pair.now)
    assert sum(drops(pair.bob).values()) == 2 * len(datagrams)
    assert pair.bob.datagrams_to_send() == []
    assert pair.bob.packets_to_deliver() == []
    assert pair.alice_sends() != []


@given(st.data())
@settings(max_examples=50)
def test_a_mutated_handshake_gets_no_session(data: st.DataObject) -> None:
    pair = DevicePair()

    def mutate(sighting: Sighting) -> bool:
        return isinstance(sighting.message, HandshakeInitiation)

    pair.loses = mutate
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    message = bytearray(pair.wire.sightings[0].datagram)
    bit = data.draw(st.integers(0, (HANDSHAKE_INITIATION_SIZE - 16) * 8 - 1))
    message[bit // 8] ^= 1 << bit % 8
    pair.bob.receive_datagram(bytes(message), ALICE, pair.now)
    assert pair.bob.datagrams_to_send() == []
    assert len(list(pair.bobs_peer.keypairs)) == 0
