from __future__ import annotations

from wgvsock.wireguard.constants import (
    LOAD_HOLD_TIME,
    RATE_LIMIT_BURST,
    RATE_LIMIT_PER_SECOND,
    STRANGERS_BURST,
    STRANGERS_PER_SECOND,
)
from wgvsock.wireguard.ratelimiter import LoadMeter, RateLimiter, StrangerLimiter


def test_the_kernel_s_numbers() -> None:
    assert (RATE_LIMIT_PER_SECOND, RATE_LIMIT_BURST) == (20, 5)


def test_a_burst_passes_then_one_token_every_50_ms() -> None:
    limiter = RateLimiter()
    assert [limiter.allow("a", 10.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not limiter.allow("a", 10.04)
    assert limiter.allow("a", 10.06)
    assert not limiter.allow("a", 10.06)


def test_a_bucket_holds_no_more_than_a_burst() -> None:
    limiter = RateLimiter()
    limiter.allow("a", 0.0)
    assert sum(limiter.allow("a", 1000.0) for _ in range(20)) == RATE_LIMIT_BURST


def test_a_steady_flood_gets_the_rate() -> None:
    limiter = RateLimiter()
    passed = sum(limiter.allow("a", 10 + i / 1000) for i in range(10_000))
    assert abs(passed - (10 * RATE_LIMIT_PER_SECOND + RATE_LIMIT_BURST)) <= 1


def test_sources_do_not_share_a_bucket() -> None:
    limiter = RateLimiter()
    for _ in range(10):
        limiter.allow("a", 0.0)
    assert limiter.allow("b", 0.0)


def test_the_table_is_bounded_and_full_buckets_make_room() -> None:
    limiter = RateLimiter(sources=3)
    assert all(limiter.allow(source, 0.0) for source in "abc")
    assert not limiter.allow("d", 0.1), "all three are busy"
    assert limiter.allow("a", 0.1), "a known source is still served"
    assert not limiter.allow("d", 1.0), "swept less than a second ago"
    assert limiter.allow("a", 1.1)
    assert limiter.allow("d", 1.15), "b and c have full buckets again"
    assert len(limiter) == 2


def test_a_stranger_s_stream_gets_one_message_a_second() -> None:
    limiter = StrangerLimiter()
    assert [limiter.allow(1, 10.0), limiter.allow(1, 10.5), limiter.allow(2, 10.5)] == [True, False, True]
    assert limiter.allow(1, 11.1)


def test_all_strangers_together_are_bounded() -> None:
    limiter = StrangerLimiter()
    passed = sum(limiter.allow(number, 10 + number / 4000) for number in range(8000))
    assert abs(passed - (2 * STRANGERS_PER_SECOND + STRANGERS_BURST)) <= 1


def test_one_stream_s_flood_costs_the_other_strangers_nothing() -> None:
    limiter = StrangerLimiter()
    for number in range(10_000):
        limiter.allow("flood", 10 + number / 10_000)
    assert sum(limiter.allow(number, 11.0) for number in range(STRANGERS_BURST)) >= STRANGERS_BURST - 1


def test_load_is_more_than_the_threshold_in_a_second() -> None:
    meter = LoadMeter(3)
    assert [meter.handshake_message(5.0) for _ in range(5)] == [False] * 3 + [True] * 2


def test_load_holds_for_a_second_after_the_flood() -> None:
    for wait, loaded in ((LOAD_HOLD_TIME - 0.01, True), (LOAD_HOLD_TIME + 0.01, False)):
        meter = LoadMeter(3)
        for time in (5.0, 5.9, 5.9, 5.9):
            meter.handshake_message(time)
        assert meter.handshake_message(5.9 + wait) is loaded, "the first of a new second"


def test_a_rate_below_the_threshold_is_no_load() -> None:
    meter = LoadMeter(3)
    assert not any(meter.handshake_message(i * 0.4) for i in range(300))


def test_load_holds_while_the_flood_does() -> None:
    meter = LoadMeter(3)
    states = [meter.handshake_message(i / 10) for i in range(100)]
    assert not any(states[:3])
    assert all(states[3:])
