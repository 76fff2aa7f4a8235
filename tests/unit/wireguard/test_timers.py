from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.wireguard import constants
from wgvsock.wireguard.timers import NEVER, STANDARD_TIMINGS, Expired, Timers, Timings


def no_jitter(size: int) -> bytes:
    return bytes(size)


class Watched:
    """Timers whose notices are kept as the owner of a device keeps them."""

    def __init__(self, timings: Timings = STANDARD_TIMINGS, jitter: int = 0) -> None:
        self.wake_at = NEVER
        self.timers = Timers(timings, lambda size: jitter.to_bytes(size, "big"), self.notice)

    def notice(self, deadline: float) -> None:
        assert deadline < self.wake_at, "a notice is always news"
        self.wake_at = deadline

    def handle(self, now: float) -> list[Expired]:
        expired = self.timers.expire(now)
        self.wake_at = self.timers.deadline()
        return expired


def test_timings_are_the_whitepaper_s_and_frozen() -> None:
    for field in fields(Timings):
        assert getattr(STANDARD_TIMINGS, field.name) == getattr(constants, field.name.upper())
    with pytest.raises(FrozenInstanceError):
        STANDARD_TIMINGS.rekey_timeout = 1.0  # type: ignore[misc]


def test_nothing_runs_at_first() -> None:
    watched = Watched()
    assert watched.timers.deadline() == NEVER
    assert watched.handle(1e9) == []


def test_an_unanswered_initiation_is_retried_for_rekey_attempt_time() -> None:
    watched = Watched()
    now, sent = 100.0, 0
    watched.timers.handshake_wanted()
    while True:
        watched.timers.handshake_initiated(now)
        sent += 1
        assert watched.wake_at == now + 5
        now = watched.wake_at
        assert watched.handle(now - 0.01) == []
        expired = watched.handle(now)
        if expired != [Expired.RETRY_HANDSHAKE]:
            break
    assert expired == [Expired.GIVE_UP_HANDSHAKE]
    assert sent == 18
    assert now == 100 + 90
    assert watched.wake_at == NEVER


def test_giving_up_cancels_the_passive_keepalive() -> None:
    watched = Watched(Timings(rekey_attempt_time=5.0))
    watched.timers.handshake_initiated(0.0)
    watched.timers.data_received(1.0)
    assert watched.handle(5.0) == [Expired.GIVE_UP_HANDSHAKE]
    assert watched.wake_at == NEVER


def test_a_new_request_restarts_the_count() -> None:
    watched = Watched()
    for _ in range(10):
        watched.timers.handshake_initiated(0.0)
    watched.timers.handshake_wanted()
    assert watched.timers.handshake_attempts == 0


def test_retries_are_jittered_by_up_to_a_third_of_a_second() -> None:
    least, most = Watched(jitter=0), Watched(jitter=65535)
    for watched in (least, most):
        watched.timers.handshake_initiated(0.0)
    assert least.wake_at == 5.0
    assert 5.333 < most.wake_at < 5 + 1 / 3


def test_a_completed_handshake_stops_the_retries() -> None:
    watched = Watched()
    watched.timers.handshake_initiated(0.0)
    watched.timers.handshake_complete()
    assert watched.handle(100.0) == []
    assert watched.timers.handshake_attempts == 0


def test_silence_after_data_sent_asks_for_a_handshake() -> None:
    watched = Watched()
    watched.timers.data_sent(100.0)
    watched.timers.data_sent(110.0)
    assert watched.wake_at == 115.0, "counted from the first packet that is unanswered"
    assert watched.handle(114.9) == []
    assert watched.handle(115.0) == [Expired.NEW_HANDSHAKE]
    assert watched.wake_at == NEVER


@pytest.mark.parametrize("hook", [Timers.data_received, Timers.any_authenticated_packet_received])
def test_any_answer_ends_the_silence(hook: object) -> None:
    watched = Watched()
    watched.timers.data_sent(100.0)
    assert callable(hook)
    hook(watched.timers, 101.0)
    assert Expired.NEW_HANDSHAKE not in watched.handle(200.0)


def test_the_silence_s_length_is_jittered_anew_for_each_session() -> None:
    watched = Watched(jitter=65535)
    watched.timers.session_derived(0.0)
    watched.timers.data_sent(100.0)
    assert 115.333 < watched.timers.deadline() < 115 + 1 / 3


def test_data_received_without_an_answer_makes_a_passive_keepalive() -> None:
    watched = Watched()
    watched.timers.data_received(100.0)
    watched.timers.data_received(109.0)
    assert watched.wake_at == 110.0
    assert watched.handle(110.0) == [Expired.SEND_KEEPALIVE]
    assert watched.wake_at == NEVER
    watched.timers.data_received(111.0)
    assert watched.wake_at == 121.0


@pytest.mark.parametrize("hook", [Timers.data_sent, Timers.any_authenticated_packet_sent])
def test_anything_sent_makes_the_keepalive_unnecessary(hook: object) -> None:
    watched = Watched()
    watched.timers.data_received(100.0)
    assert callable(hook)
    hook(watched.timers, 101.0)
    assert watched.handle(110.0) == []


def test_keys_are_zeroed_after_three_reject_times() -> None:
    watched = Watched()
    watched.timers.session_derived(100.0)
    assert watched.wake_at == 100 + 540
    assert watched.handle(639.0) == []
    assert watched.handle(640.0) == [Expired.ZERO_KEY_MATERIAL]


def test_a_persistent_keepalive_follows_the_last_message() -> None:
    watched = Watched()
    watched.timers.set_persistent_keepalive(25)
    assert watched.wake_at == NEVER, "nothing was sent yet"
    watched.timers.any_authenticated_packet_sent(100.0)
    assert watched.wake_at == 125.0
    watched.timers.any_authenticated_packet_received(110.0)
    assert watched.handle(125.0) == []
    assert watched.wake_at == 135.0
    assert watched.handle(135.0) == [Expired.PERSISTENT_KEEPALIVE]
    assert watched.wake_at == 160.0, "it goes on whether or not something could be sent"


def test_switching_the_persistent_keepalive_on_counts_from_the_last_message() -> None:
    watched = Watched()
    watched.timers.any_authenticated_packet_sent(100.0)
    watched.timers.set_persistent_keepalive(25)
    assert watched.wake_at == 125.0
    watched.timers.set_persistent_keepalive(0)
    assert watched.handle(125.0) == []
    assert watched.wake_at == NEVER


def test_one_keepalive_serves_both_purposes() -> None:
    watched = Watched()
    watched.timers.set_persistent_keepalive(10)
    watched.timers.data_received(100.0)
    assert watched.handle(110.0) == [Expired.SEND_KEEPALIVE]


def test_stop_leaves_only_the_persistent_keepalive() -> None:
    watched = Watched()
    watched.timers.handshake_initiated(0.0)
    watched.timers.session_derived(0.0)
    watched.timers.data_received(0.0)
    watched.timers.data_sent(0.0)
    watched.timers.stop()
    assert watched.handle(1000.0) == []
    watched.timers.set_persistent_keepalive(25)
    watched.timers.stop()
    assert watched.timers.deadline() == 25.0


HOOKS = [
    Timers.data_sent,
    Timers.data_received,
    Timers.any_authenticated_packet_sent,
    Timers.any_authenticated_packet_received,
    Timers.handshake_initiated,
    Timers.session_derived,
]


@given(
    st.lists(st.tuples(st.sampled_from(HOOKS), st.floats(0, 30), st.booleans()), max_size=40),
    st.sampled_from([0, 7, 25]),
)
def test_the_known_deadline_is_never_too_late(events: list[tuple[object, float, bool]], keepalive: int) -> None:
    watched = Watched()
    watched.timers.set_persistent_keepalive(keepalive)
    watched.timers.any_authenticated_packet_sent(0.0)
    now = 0.0
    for hook, wait, handle in events:
        now += wait
        if handle:
            watched.handle(now)
        assert callable(hook)
        hook(watched.timers, now)
        known = watched.wake_at
        assert known <= watched.timers.deadline()
        watched.wake_at = watched.timers.deadline()


def test_a_detached_owner_hears_nothing_any_more() -> None:
    watched = Watched()
    watched.timers.set_persistent_keepalive(25)
    watched.timers.session_derived(100.0)
    watched.timers.detach()
    assert watched.timers.deadline() == NEVER
    watched.wake_at = NEVER
    watched.timers.data_sent(200.0)
    watched.timers.session_derived(200.0)
    assert watched.wake_at == NEVER


def test_a_persistent_keepalive_can_be_made_due() -> None:
    watched = Watched()
    watched.timers.persistent_keepalive_due(100.0)
    assert watched.wake_at == NEVER, "there is none"
    watched.timers.set_persistent_keepalive(25)
    watched.timers.persistent_keepalive_due(100.0)
    assert watched.wake_at <= 100.0
    assert watched.handle(100.0) == [Expired.PERSISTENT_KEEPALIVE]
    assert watched.wake_at == 125.0
