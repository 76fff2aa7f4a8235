"""How delays grow, and start over."""

from __future__ import annotations

from wgvsock.runtime.backoff import BACKOFF_JITTER, INITIAL_BACKOFF, Backoff


def test_delays_double_up_to_the_maximum_and_start_again_after_a_reset() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next_delay() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    backoff.reset()
    assert backoff.next_delay() == INITIAL_BACKOFF


def test_jitter_only_lengthens() -> None:
    backoff = Backoff(lambda: 1.0)
    assert backoff.next_delay() == INITIAL_BACKOFF * (1 + BACKOFF_JITTER)


def test_bounds_of_its_own_and_a_limit_for_one_delay() -> None:
    backoff = Backoff(lambda: 0.0, first=1, longest=5)
    assert [backoff.next_delay() for _ in range(4)] == [1, 2, 4, 5]
    assert backoff.next_delay(0.5) == 0.5
    assert backoff.next_delay() == 1
