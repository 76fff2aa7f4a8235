from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.effort import effort
from wgvsock.testing import ManualClock, SeededRandom
from wgvsock.wireguard import Device, Peer, public_key
from wgvsock.wireguard.constants import TIMERS_AT_ONCE
from wgvsock.wireguard.messages import HandshakeInitiation, parse_message
from wgvsock.wireguard.schedule import Schedule
from wgvsock.wireguard.timers import NEVER

T0 = 1000.0


def make_device() -> Device:
    device = Device(random=SeededRandom("schedule"), wall_clock=ManualClock().wall_clock)
    device.set_private_key(bytes(range(32)), T0)
    return device


def add_peers(device: Device, count: int) -> list[Peer]:
    """Peers whose keys are numbers, which suffices without handshakes."""
    return [
        device.add_peer((number + 2).to_bytes(32, "little"), endpoint=f"host {number}", now=T0)
        for number in range(count)
    ]


@pytest.fixture
def peers() -> list[Peer]:
    return add_peers(make_device(), 3)


def announce(schedule: Schedule, deadline: float, peer: Peer) -> bool:
    peer.timers.known = deadline
    return schedule.add(deadline, peer)


def test_an_empty_one(peers: list[Peer]) -> None:
    schedule = Schedule()
    assert schedule.next_deadline() is None
    assert schedule.take_due(1e9, 10) == []
    assert not announce(schedule, NEVER, peers[0])
    assert len(schedule) == 0


def test_the_earliest_comes_first_and_is_news(peers: list[Peer]) -> None:
    schedule = Schedule()
    assert announce(schedule, 20.0, peers[0])
    assert not announce(schedule, 30.0, peers[1])
    assert announce(schedule, 10.0, peers[2])
    assert schedule.next_deadline() == 10.0
    assert schedule.take_due(9.9, 10) == []
    assert schedule.take_due(20.0, 10) == [peers[2], peers[0]]
    assert schedule.next_deadline() == 30.0


def test_no_more_are_taken_than_asked_for(peers: list[Peer]) -> None:
    schedule = Schedule()
    for peer in peers:
        announce(schedule, 10.0, peer)
    assert schedule.take_due(10.0, 2) == peers[:2]
    assert schedule.next_deadline() == 10.0
    assert schedule.take_due(10.0, 2) == peers[2:]


def test_a_deadline_that_moved_away_is_passed_over(peers: list[Peer]) -> None:
    schedule = Schedule()
    announce(schedule, 20.0, peers[0])
    announce(schedule, 10.0, peers[0])
    assert schedule.take_due(10.0, 10) == peers[:1]
    announce(schedule, 30.0, peers[0])
    assert schedule.take_due(20.0, 10) == []
    assert schedule.take_due(30.0, 10) == peers[:1]


def test_a_peer_that_was_removed_is_passed_over(peers: list[Peer]) -> None:
    schedule = Schedule()
    announce(schedule, 10.0, peers[0])
    peers[0].removed = True
    assert schedule.take_due(10.0, 10) == []


def test_what_was_removed_or_moved_does_not_pile_up(peers: list[Peer]) -> None:
    schedule = Schedule()
    announce(schedule, 1.0, peers[1])
    for number in range(10_000):
        announce(schedule, 1e6 - number, peers[0])
        assert len(schedule) <= 65
    assert schedule.take_due(1e6, 10) == [peers[1], peers[0]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.booleans()), max_size=60))
def test_agrees_with_looking_at_everybody(steps: list[tuple[int, int, bool]]) -> None:
    peers = add_peers(make_device(), 3)
    schedule = Schedule()
    for index, deadline, take in steps:
        if take:
            due = {peer for peer in peers if peer.timers.known <= deadline}
            assert set(schedule.take_due(deadline, 3)) == due
            for peer in due:
                peer.timers.known = NEVER
        elif deadline < peers[index].timers.known:
            announce(schedule, deadline, peers[index])


# --- as the device uses it ---


def test_a_timer_costs_what_is_due_and_not_all_peers() -> None:
    def cost(count: int) -> int:
        device = make_device()
        later = add_peers(device, count)
        for peer in later:
            peer.timers.session_derived(T0)
        later[0].timers.data_received(T0)
        return effort(lambda: device.handle_timers(T0 + 11.0))

    assert cost(1000) == cost(10)


def test_many_timers_at_once_are_handled_in_portions_and_no_datagram_is_lost() -> None:
    """5,000 initiations do not fit into the queue of datagrams."""
    device = make_device()
    count = 5000
    for peer in add_peers(device, count):
        peer.timers.persistent_keepalive = 25
        peer.timers.any_authenticated_packet_sent(T0)
    initiated: list[object] = []
    while (deadline := device.next_deadline()) is not None and deadline <= T0 + 25.0:
        device.handle_timers(T0 + 25.0)
        sent = device.datagrams_to_send()
        assert len(sent) <= TIMERS_AT_ONCE
        initiated += [endpoint for endpoint, message in sent if isinstance(parse_message(message), HandshakeInitiation)]
    assert initiated == [f"host {number}" for number in range(count)]


def test_removed_peers_leave_nothing_behind() -> None:
    device = make_device()
    key = public_key(b"\x05" * 32)
    for _ in range(1000):
        device.add_peer(key, endpoint="somewhere", persistent_keepalive=65535, now=T0)
        device.datagrams_to_send()
        device.remove_peer(key)
    assert len(device._schedule) <= 65
