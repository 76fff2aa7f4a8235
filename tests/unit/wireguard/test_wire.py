"""What an observer sees: which messages, how many, how long, and nothing of their contents."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wgvsock.testing import DevicePair
from wgvsock.testing.pair import ALICE, BOB, ipv4_packet
from wgvsock.wireguard.messages import CookieReply, HandshakeInitiation, HandshakeResponse, TransportData
from wgvsock.wireguard.peer import Profile


def test_silence_until_somebody_has_something_to_say() -> None:
    pair = DevicePair()
    pair.run(1000.0)
    assert pair.wire.sightings == []


def test_one_handshake_one_keepalive() -> None:
    pair = DevicePair()
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert [(sighting.sender, len(sighting.datagram)) for sighting in pair.wire.sightings] == [
        (ALICE, 148),
        (BOB, 92),
        (ALICE, 32),
    ]
    assert len(pair.wire.keepalives()) == 1


def test_one_handshake_however_much_is_sent() -> None:
    pair = DevicePair()
    for number in range(50):
        assert len(pair.alice_sends(bytes(number))) == 1
        assert len(pair.bob_sends(bytes(number))) == 1
    assert len(pair.wire.of(HandshakeInitiation)) == len(pair.wire.of(HandshakeResponse)) == 1
    assert len(pair.wire.data()) == 100
    assert pair.wire.keepalives() == []


def test_one_passive_keepalive_answers_what_was_not_answered() -> None:
    pair = DevicePair()
    pair.handshake()
    for _ in range(20):
        pair.alice_sends()
        pair.clock.advance(0.1)
    pair.wire.clear()
    pair.run(1000.0)
    assert [(sighting.sender, len(sighting.datagram)) for sighting in pair.wire.sightings] == [(BOB, 32)]


def test_an_idle_session_is_silent_to_its_end() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.run(1000.0)
    assert pair.wire.sightings == []


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=20), st.sampled_from(Profile))
@settings(max_examples=25)
def test_lengths_are_multiples_of_16(sizes: list[int], profile: Profile) -> None:
    pair = DevicePair(packet_headroom=10, profile=profile)
    pair.handshake()
    for size in sizes:
        assert len(pair.alice_sends(bytes(size))) == 1
    for message, size in zip(pair.wire.data(), sizes, strict=True):
        plaintext = len(message.encrypted_encapsulated_packet) - 16
        packet = 20 + size + (10 if profile is Profile.GSO else 0)
        assert plaintext % 16 == 0
        assert 0 <= plaintext - packet < 16


def test_counters_never_repeat_and_indices_change_with_each_session() -> None:
    pair = DevicePair()
    for _ in range(60):
        pair.alice_sends()
        pair.bob_sends()
        pair.run(20.0)
    messages = [(s.sender, m.receiver_index, m.counter) for s in pair.wire.sightings
                if isinstance(m := s.message, TransportData)]  # fmt: skip
    assert len(set(messages)) == len(messages)
    sessions = len(pair.wire.of(HandshakeInitiation))
    assert sessions >= 8
    assert len({index for _, index, _ in messages}) == 2 * sessions
    ephemerals = [message.unencrypted_ephemeral for message in pair.wire.of(HandshakeInitiation)]
    ephemerals += [message.unencrypted_ephemeral for message in pair.wire.of(HandshakeResponse)]
    assert len(set(ephemerals)) == len(ephemerals) == 2 * sessions


def test_a_busy_session_is_renewed_every_two_minutes_and_loses_nothing() -> None:
    pair = DevicePair()
    pair.handshake()
    start, sent = pair.now, 0
    while pair.now < start + 600:
        assert len(pair.alice_sends()) == len(pair.bob_sends()) == 1
        sent += 1
        pair.run(1.0)
    times = [s.time - start for s in pair.wire.sightings if isinstance(s.message, HandshakeInitiation)]
    assert times == [120.0, 240.0, 360.0, 480.0]
    assert all(s.sender == ALICE for s in pair.wire.sightings if isinstance(s.message, HandshakeInitiation))
    assert len(pair.wire.data()) == 2 * sent
    assert not pair.alice.statistics().drops
    assert not pair.bob.statistics().drops


def test_nothing_of_the_inside_is_seen() -> None:
    pair = DevicePair()
    secret = b"attack at dawn, and bring the good biscuits"
    assert len(pair.alice_sends(secret)) == 1
    seen = b"".join(sighting.datagram for sighting in pair.wire.sightings)
    packet = ipv4_packet("10.0.0.1", "10.0.0.2", secret)
    assert not any(packet[i : i + 6] in seen for i in range(len(packet) - 6))
    for key in (pair.alices_peer.public_key, pair.bobs_peer.public_key):
        assert key not in seen, "identities are hidden"


def test_the_same_packet_never_looks_the_same() -> None:
    pair = DevicePair()
    for _ in range(20):
        pair.alice_sends(b"same")
    inside = [message.encrypted_encapsulated_packet for message in pair.wire.data()]
    assert len(set(inside)) == 20


def test_a_stranger_who_replays_everything_gets_no_answer() -> None:
    pair = DevicePair()
    pair.alice_sends()
    pair.bob_sends()
    recorded = [sighting.datagram for sighting in pair.wire.sightings]
    pair.clock.advance(1.0)
    for datagram in recorded:
        pair.bob.receive_datagram(datagram, "mallory", pair.now)
        pair.alice.receive_datagram(datagram, "mallory", pair.now)
    assert pair.alice.datagrams_to_send() == pair.bob.datagrams_to_send() == []
    assert pair.alice.packets_to_deliver() == pair.bob.packets_to_deliver() == []
    assert (pair.alices_peer.endpoint, pair.bobs_peer.endpoint) == (BOB, ALICE)


def test_a_device_under_load_answers_with_less_than_it_was_sent() -> None:
    pair = DevicePair(load_threshold=0)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert [len(sighting.datagram) for sighting in pair.wire.sightings] == [148, 64]
    assert len(pair.wire.of(CookieReply)) == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 30)), min_size=10, max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_losses_are_survived(plan: list[tuple[bool, bool, float]]) -> None:
    """After any pattern of losses and pauses, a quiet network carries packets again within one retry."""
    pair = DevicePair()
    pair.bobs_peer.set_endpoint(ALICE)
    losses = iter([lost for lost, _, _ in plan] * 10)
    pair.loses = lambda _: next(losses, False)
    for _, alice, wait in plan:
        _ = pair.alice_sends() if alice else pair.bob_sends()
        pair.run(wait)
    pair.loses = lambda _: False
    pair.alice_sends()
    pair.bob_sends()
    pair.run(21.0)
    assert len(pair.alice_sends(b"now")) >= 1
    assert len(pair.bob_sends(b"now")) >= 1
