from __future__ import annotations

import pytest

from wgvsock.testing.clock import EPOCH, ManualClock, SeededRandom


def test_time_moves_only_when_told() -> None:
    clock = ManualClock(now=5.0)
    assert (clock(), clock.now, clock.wall_clock()) == (5.0, 5.0, EPOCH)
    assert clock.advance(1.5) == 6.5
    assert clock.wall_clock() == EPOCH + 1_500_000_000
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-0.1)


def test_the_wall_clock_can_be_set() -> None:
    clock = ManualClock(wall=10**18)
    clock.step_wall_clock(-2.0)
    assert clock.wall_clock() == 10**18 - 2 * 10**9
    assert clock.now == 1000.0


def test_seeded_random_repeats_itself_and_nobody_else() -> None:
    first, again, other = SeededRandom("a"), SeededRandom("a"), SeededRandom("b")
    drawn = [first(32) for _ in range(5)]
    assert drawn == [again(32) for _ in range(5)]
    assert len({*drawn, other(32)}) == 6
    assert [len(first(size)) for size in (0, 1, 4, 100)] == [0, 1, 4, 100]
