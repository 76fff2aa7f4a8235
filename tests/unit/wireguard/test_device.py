from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgvsock.errors import ConfigurationError
from wgvsock.testing import DevicePair, ManualClock, SeededRandom
from wgvsock.testing.pair import ALICE, BOB, drain_events, drops, ipv4_packet
from wgvsock.wireguard import Device, Profile, generate_private_key, peer_for_packet, public_key
from wgvsock.wireguard.constants import MAX_QUEUED_DATAGRAMS, MAX_QUEUED_EVENTS, MAX_QUEUED_PACKETS
from wgvsock.wireguard.events import Dropped, DropReason, HandshakeCompleted, HandshakeFailed
from wgvsock.wireguard.messages import HandshakeInitiation

KEY = public_key(bytes(range(32)))
NETWORK = ipaddress.ip_network("10.5.0.0/16")


def make_device(packet_headroom: int = 0) -> Device:
    clock = ManualClock()
    return Device(random=SeededRandom("device"), wall_clock=clock.wall_clock, packet_headroom=packet_headroom)


# --- configuration ---


def test_headroom_is_0_or_a_virtio_header() -> None:
    with pytest.raises(ConfigurationError, match="0 or 10"):
        make_device(packet_headroom=12)
    assert make_device(packet_headroom=10).packet_headroom == 10


def test_the_private_key_makes_the_public_key() -> None:
    device = make_device()
    assert device.public_key is None
    device.set_private_key(bytes(range(32)), 0.0)
    assert device.public_key == KEY
    device.set_private_key(None, 0.0)
    assert device.public_key is None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_are_32_bytes(size: int) -> None:
    device = make_device()
    with pytest.raises(ConfigurationError, match="private key has 32 bytes"):
        device.set_private_key(bytes(size), 0.0)
    with pytest.raises(ConfigurationError, match="public key has 32 bytes"):
        device.add_peer(bytes(size), now=0.0)
    with pytest.raises(ConfigurationError, match="preshared key has 32 bytes"):
        device.add_peer(KEY, preshared_key=bytes(size), now=0.0)
    assert dict(device.peers) == {}


def test_a_peer_with_a_weak_key_is_taken_and_never_contacted() -> None:
    device = make_device()
    device.set_private_key(bytes(range(32)), 0.0)
    peer = device.add_peer(bytes(32), endpoint=BOB, allowed_ips=[NETWORK], persistent_keepalive=1, now=0.0)
    device.send_packet(ipv4_packet("10.0.0.1", "10.5.0.1"), 0.0)
    peer.initiate_handshake(0.0)
    peer.retry_handshake(0.0)
    device.handle_timers(200.0)
    assert device.datagrams_to_send() == []
    assert device.pending_by_index == {}
    device.set_private_key(bytes(range(1, 33)), 300.0)
    assert device.datagrams_to_send() == []


def test_a_device_is_not_its_own_peer() -> None:
    device = make_device()
    device.set_private_key(bytes(range(32)), 0.0)
    with pytest.raises(ConfigurationError, match="its own peer"):
        device.add_peer(KEY, now=0.0)


def test_the_peer_that_has_our_new_key_is_removed() -> None:
    device = make_device()
    peer = device.add_peer(KEY, allowed_ips=[NETWORK], now=0.0)
    device.set_private_key(bytes(range(32)), 0.0)
    assert dict(device.peers) == {}
    assert peer.removed


def test_a_peer_gets_all_its_settings() -> None:
    device = make_device(packet_headroom=10)
    peer = device.add_peer(
        KEY,
        preshared_key=b"\1" * 32,
        allowed_ips=[NETWORK],
        endpoint=BOB,
        persistent_keepalive=25,
        profile=Profile.GSO,
        now=0.0,
    )
    assert device.peers == {KEY: peer}
    assert (peer.public_key, peer.preshared_key, peer.allowed_ips) == (KEY, b"\1" * 32, (NETWORK,))
    assert (peer.endpoint, peer.persistent_keepalive, peer.profile) == (BOB, 25, Profile.GSO)


def test_adding_a_known_peer_gives_it_exactly_these_settings() -> None:
    pair = DevicePair(preshared_key=b"\1" * 32)
    pair.handshake()
    peer = pair.alice.add_peer(pair.alices_peer.public_key, allowed_ips=[NETWORK], now=pair.now)
    assert peer is pair.alices_peer
    assert peer.preshared_key == bytes(32)
    assert peer.allowed_ips == (NETWORK,)
    assert peer.persistent_keepalive == 0
    assert peer.endpoint == BOB, "kept"
    assert peer.has_session(pair.now), "kept"


@pytest.mark.parametrize(
    "wrong", [{"preshared_key": b"short"}, {"persistent_keepalive": -1}, {"profile": Profile.GSO}], ids=str
)
def test_a_refused_change_changes_nothing(wrong: dict[str, object]) -> None:
    pair = DevicePair(preshared_key=b"\1" * 32)
    before = pair.alices_peer.allowed_ips
    settings: dict[str, object] = {"preshared_key": None, "endpoint": "x", "allowed_ips": [NETWORK], **wrong}
    with pytest.raises(ConfigurationError):
        pair.alice.add_peer(pair.alices_peer.public_key, now=pair.now, **settings)  # type: ignore[arg-type]
    assert pair.alices_peer.preshared_key == b"\1" * 32
    assert pair.alices_peer.endpoint == BOB
    assert pair.alices_peer.allowed_ips == before


def test_an_allowed_ip_moves_to_the_peer_that_is_added_last() -> None:
    device = make_device()
    first = device.add_peer(KEY, allowed_ips=[NETWORK], now=0.0)
    second = device.add_peer(public_key(b"\7" * 32), allowed_ips=[NETWORK], now=0.0)
    assert first.allowed_ips == ()
    assert second.allowed_ips == (NETWORK,)
    device.remove_peer(second.public_key)
    assert peer_for_packet(device, memoryview(ipv4_packet("10.0.0.1", "10.5.0.1"))) is None


def test_removing_an_unknown_peer_is_no_error() -> None:
    make_device().remove_peer(KEY)


def test_a_replaced_peer_begins_anew_and_what_was_on_its_way_arrives() -> None:
    pair = DevicePair()
    pair.handshake()
    assert pair.bob_sends()
    former = pair.alices_peer
    pair.bob.send_packet(ipv4_packet("10.0.0.2", "10.0.0.1", b"on its way"), pair.now)
    networks = former.allowed_ips
    peer = pair.alice.replace_peer(former.public_key, now=pair.now)
    assert former.removed
    assert (peer.endpoint, peer.last_handshake, peer.rx_bytes, peer.has_session(pair.now)) == (None, 0, 0, False)
    assert peer.allowed_ips == networks
    pair.transfer()
    assert len(pair.alice.packets_to_deliver()) == 1
    assert peer.endpoint == BOB, "an authenticated message has come from there"
    pair.wire.clear()
    pair.clock.advance(0.03)
    pair.clock.step_wall_clock(-60.0)
    assert pair.alice_sends()
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    assert pair.bob_sends()
    pair.alice.remove_peer(peer.public_key)
    assert pair.alice.keypairs_by_index == {}


def test_a_handshake_that_is_under_way_survives_the_replacement() -> None:
    """Alice has answered Bob, who will use the new session: it is his current one."""
    pair = DevicePair()
    pair.handshake()
    pair.bobs_peer.retry_handshake(pair.now)
    for _, datagram in pair.bob.datagrams_to_send():
        pair.alice.receive_datagram(datagram, BOB, pair.now)
    pair.alice.replace_peer(pair.alices_peer.public_key, now=pair.now)
    pair.transfer()
    assert pair.bob_sends()
    assert pair.alice_sends()


def test_with_another_preshared_key_nothing_of_the_old_session_is_accepted() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.bob.send_packet(ipv4_packet("10.0.0.2", "10.0.0.1"), pair.now)
    pair.alice.replace_peer(pair.alices_peer.public_key, preshared_key=b"\1" * 32, now=pair.now)
    pair.transfer()
    assert pair.alice.packets_to_deliver() == []
    assert drops(pair.alice) == {DropReason.UNKNOWN_INDEX: 1}
    assert pair.alice.keypairs_by_index == {}


def test_peers_cannot_be_changed_from_outside() -> None:
    device = make_device()
    peer = device.add_peer(KEY, now=0.0)
    with pytest.raises(TypeError):
        device.peers[KEY] = peer  # type: ignore[index]


# --- identities ---


def test_a_new_private_key_ends_the_sessions() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.alice.set_private_key(bytes(range(32)), pair.now)
    assert not pair.alices_peer.has_session(pair.now)
    assert pair.alice.keypairs_by_index == {}
    assert pair.alice_sends() == []
    assert drops(pair.bob) == {DropReason.UNKNOWN_PEER: 1}
    pair.bob.add_peer(KEY, allowed_ips=pair.bobs_peer.allowed_ips, now=pair.now)
    pair.run(6.0)
    assert pair.bob.packets_to_deliver() == [ipv4_packet("10.0.0.1", "10.0.0.2", b"from alice")]


def test_the_same_private_key_changes_nothing() -> None:
    pair = DevicePair()
    pair.handshake()
    assert pair.alice.identity is not None
    pair.alice.set_private_key(pair.alice.identity.private.private_bytes_raw(), pair.now)
    assert pair.alices_peer.has_session(pair.now)


def test_a_new_private_key_reaches_out_where_a_keepalive_is_wanted() -> None:
    pair = DevicePair()
    pair.alices_peer.set_persistent_keepalive(25, pair.now)
    pair.run(0.0)
    pair.bob.add_peer(KEY, now=pair.now)
    pair.wire.clear()
    pair.clock.advance(1.0)
    pair.alice.set_private_key(bytes(range(32)), pair.now)
    pair.run(0.0)
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    assert pair.alices_peer.has_session(pair.now)


def test_without_a_private_key_nothing_is_sent() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.alice.set_private_key(None, pair.now)
    assert pair.alice_sends() == []
    assert pair.wire.sightings == []


def rotated(pair: DevicePair) -> list[bytes]:
    """Alice takes a new identity while packets flow both ways. Returns every packet that arrived."""
    arrived = [*pair.alice_sends(b"1"), *pair.bob_sends(b"2")]
    new_key = bytes(range(32))
    pair.alice.set_private_key(new_key, pair.now, keep_sessions=True)
    arrived += [*pair.alice_sends(b"3"), *pair.bob_sends(b"4")]
    successor = pair.bob.add_peer(KEY, successor_of=pair.bobs_peer.public_key, now=pair.now)
    arrived += [*pair.alice_sends(b"5"), *pair.bob_sends(b"6")]
    # A packet of the old session that is overtaken by the handshake.
    pair.alice.send_packet(ipv4_packet("10.0.0.1", "10.0.0.2", b"7"), pair.now)
    ((_, late),) = pair.alice.datagrams_to_send()
    pair.alices_peer.initiate_handshake(pair.now)
    pair.alice.send_packet(ipv4_packet("10.0.0.1", "10.0.0.2", b"8"), pair.now)
    pair.transfer()
    pair.bob.receive_datagram(late, ALICE, pair.now)
    arrived += [*pair.bob.packets_to_deliver(), *pair.alice_sends(b"9"), *pair.bob_sends(b"10")]
    assert successor.allowed_ips == (ipaddress.ip_network("10.0.0.1/32"), ipaddress.ip_network("fd00::1/128"))
    assert pair.bobs_peer.allowed_ips == ()
    pair.bob.remove_peer(pair.bobs_peer.public_key)
    assert successor.predecessor is None
    return [*arrived, *pair.alice_sends(b"11"), *pair.bob_sends(b"12")]


def test_an_identity_is_replaced_without_losing_a_packet() -> None:
    pair = DevicePair()
    pair.handshake()
    payloads = [packet[20:] for packet in rotated(pair)]
    assert sorted(payloads, key=int) == [str(number).encode() for number in range(1, 13)]
    assert drops(pair.alice) == drops(pair.bob) == {}


def test_the_successor_s_first_packet_passes_the_source_check() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.alice.set_private_key(bytes(range(32)), pair.now, keep_sessions=True)
    pair.bob.add_peer(KEY, successor_of=pair.bobs_peer.public_key, now=pair.now)
    pair.alices_peer.expire_session()
    assert pair.alice_sends(b"confirms the session") != []
    assert pair.wire.keepalives() == []


def test_a_successor_starts_where_its_predecessor_is_and_takes_its_staged_packets() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.bob.set_private_key(bytes(range(32)), pair.now, keep_sessions=True)
    old = pair.alices_peer
    old.expire_session()
    pair.loses = lambda _: True
    assert pair.alice_sends(b"staged for the old peer") == []
    pair.loses = lambda _: False
    successor = pair.alice.add_peer(KEY, successor_of=old.public_key, now=pair.now)
    assert successor.endpoint == BOB
    pair.clock.advance(1.0)
    successor.initiate_handshake(pair.now)
    pair.transfer()
    assert [packet[20:] for packet in pair.bob.packets_to_deliver()] == [b"staged for the old peer"]


def test_a_stranger_is_not_accepted_from_a_successor_s_addresses() -> None:
    pair = DevicePair()
    pair.handshake()
    other = pair.bob.add_peer(KEY, allowed_ips=pair.bobs_peer.allowed_ips, now=pair.now)
    assert other.predecessor is None
    assert pair.alice_sends() == []
    assert drops(pair.bob) == {DropReason.FORBIDDEN_SOURCE: 1}


def test_a_peer_does_not_succeed_itself_or_nobody() -> None:
    device = make_device()
    assert device.add_peer(KEY, successor_of=KEY, now=0.0).predecessor is None
    peer = device.add_peer(KEY, successor_of=public_key(b"\7" * 32), now=0.0)
    assert peer.predecessor is None
    assert peer.endpoint is None


def test_a_rotation_can_be_taken_back() -> None:
    pair = DevicePair()
    pair.handshake()
    assert pair.alice.identity is not None
    old = pair.alice.identity.private.private_bytes_raw()
    pair.alice.set_private_key(bytes(range(32)), pair.now, keep_sessions=True)
    pair.alice.set_private_key(old, pair.now, keep_sessions=True)
    assert pair.alice_sends() != []
    pair.clock.advance(121.0)
    assert pair.alice_sends() != []
    assert len(pair.wire.of(HandshakeInitiation)) == 1
    assert drops(pair.bob) == {}


# --- many peers ---


def test_many_peers_do_not_disturb_each_other() -> None:
    clock = ManualClock()
    hub = Device(random=SeededRandom("hub"), wall_clock=clock.wall_clock)
    hub.set_private_key(generate_private_key(SeededRandom("hub key")), 0.0)
    assert hub.public_key is not None
    spokes = {}
    for number in range(1, 30):
        name = f"spoke {number}"
        spoke = Device(random=SeededRandom(name), wall_clock=clock.wall_clock)
        key = generate_private_key(SeededRandom(name + " key"))
        spoke.set_private_key(key, 0.0)
        spoke.add_peer(hub.public_key, allowed_ips=[ipaddress.ip_network("10.0.0.0/8")], endpoint="hub", now=0.0)
        hub.add_peer(public_key(key), allowed_ips=[ipaddress.ip_network(f"10.0.{number}.0/24")], now=0.0)
        spokes[name] = spoke
        spoke.send_packet(ipv4_packet(f"10.0.{number}.1", "10.1.0.1"), clock.now)
    for _ in range(3):
        for name, spoke in spokes.items():
            for _, datagram in spoke.datagrams_to_send():
                hub.receive_datagram(datagram, name, clock.now)
        for endpoint, datagram in hub.datagrams_to_send():
            spokes[str(endpoint)].receive_datagram(datagram, "hub", clock.now)
    assert sorted(hub.packets_to_deliver()) == sorted(
        ipv4_packet(f"10.0.{number}.1", "10.1.0.1") for number in range(1, 30)
    )
    assert len(hub.keypairs_by_index) == len(hub.peers) == 29
    hub.send_packet(ipv4_packet("10.1.0.1", "10.0.7.9"), clock.now)
    assert [endpoint for endpoint, _ in hub.datagrams_to_send()] == ["spoke 7"]


# --- queues ---


def test_the_queue_of_datagrams_is_bounded() -> None:
    pair = DevicePair()
    pair.handshake()
    for number in range(MAX_QUEUED_DATAGRAMS + 2):
        pair.alice.send_packet(ipv4_packet("10.0.0.1", "10.0.0.2", number.to_bytes(2, "big")), pair.now)
    assert drops(pair.alice) == {DropReason.QUEUE_FULL: 2}
    pair.transfer()
    assert len(pair.bob.packets_to_deliver()) == MAX_QUEUED_DATAGRAMS


def test_the_queue_of_packets_is_bounded() -> None:
    pair = DevicePair()
    pair.handshake()
    for _ in range(MAX_QUEUED_PACKETS + 3):
        pair.alice.send_packet(ipv4_packet("10.0.0.1", "10.0.0.2"), pair.now)
        for _, datagram in pair.alice.datagrams_to_send():
            pair.bob.receive_datagram(datagram, ALICE, pair.now)
    assert drops(pair.bob) == {DropReason.QUEUE_FULL: 3}
    assert len(pair.bob.packets_to_deliver()) == MAX_QUEUED_PACKETS
    assert pair.bob.packets_to_deliver() == []


def test_a_flood_of_drops_pushes_no_event_out() -> None:
    pair = DevicePair()
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    for _ in range(2 * MAX_QUEUED_EVENTS):
        pair.bob.receive_datagram(b"garbage", "mallory", pair.now)
    for _ in range(MAX_QUEUED_EVENTS // 2):
        pair.bob.emit(HandshakeFailed(pair.bobs_peer, 18))
    events = drain_events(pair.bob)
    assert len(events) == MAX_QUEUED_EVENTS
    assert HandshakeCompleted(pair.bobs_peer, initiator=False, duration=0.0) in events
    assert drops(pair.bob) == {DropReason.MALFORMED_MESSAGE: 2 * MAX_QUEUED_EVENTS}, "all are counted"


def test_the_queue_of_events_is_bounded() -> None:
    pair = DevicePair()
    for attempts in range(MAX_QUEUED_EVENTS + 5):
        pair.alice.emit(HandshakeFailed(pair.alices_peer, attempts))
    events = drain_events(pair.alice)
    assert len(events) == MAX_QUEUED_EVENTS
    assert events[0] == HandshakeFailed(pair.alices_peer, 5)
    assert pair.alice.next_event() is None


def test_drops_say_where_and_whose() -> None:
    device = make_device()
    device.receive_datagram(b"", "mallory", 0.0)
    assert device.next_event() == Dropped(DropReason.MALFORMED_MESSAGE, "mallory", None)


# --- time ---


def test_next_deadline() -> None:
    pair = DevicePair()
    assert pair.alice.next_deadline() is None
    pair.alices_peer.initiate_handshake(pair.now)
    deadline = pair.alice.next_deadline()
    assert deadline is not None
    assert 5 <= deadline - pair.now <= 5 + 1 / 3


def test_handling_timers_too_early_does_nothing() -> None:
    pair = DevicePair()
    pair.loses = lambda _: True
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    pair.clock.advance(4.9)
    pair.alice.handle_timers(pair.now)
    assert pair.alice.datagrams_to_send() == []


@given(st.lists(st.tuples(st.sampled_from(["alice", "bob", "wait", "lose", "find"]), st.floats(0, 40)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_a_deadline_never_stays_in_the_past(steps: list[tuple[str, float]]) -> None:
    """Handling the timers always advances `next_deadline`: the owner's loop cannot spin."""
    pair = DevicePair()
    for step, wait in steps:
        match step:
            case "alice":
                pair.alice_sends()
            case "bob":
                pair.bob_sends()
            case "lose":
                pair.loses = lambda _: True
            case "find":
                pair.loses = lambda _: False
        pair.clock.advance(wait)
        for device in (pair.alice, pair.bob):
            device.handle_timers(pair.now)
            deadline = device.next_deadline()
            assert deadline is None or deadline > pair.now
        pair.transfer()


def test_a_wall_clock_that_was_set_back_does_not_stop_handshakes() -> None:
    pair = DevicePair()
    pair.handshake()
    pair.clock.step_wall_clock(-3600.0)
    pair.clock.advance(6.0)
    pair.alices_peer.initiate_handshake(pair.now)
    pair.transfer()
    assert drops(pair.bob) == {}
    assert pair.bob.statistics().peers[pair.bobs_peer.public_key].handshakes_completed == 2
