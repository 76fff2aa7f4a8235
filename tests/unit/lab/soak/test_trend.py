"""A rise is distinguished from noise, from a warm-up, and from too few values."""

from __future__ import annotations

import random

import pytest

from lab.soak.trend import Limit, Trend

LIMIT = Limit(share=0.02, slack=100)


def line(*values: float, limit: Limit = LIMIT) -> Trend:
    return Trend("relay memory", "KiB", [(2.0 * number, value) for number, value in enumerate(values)], limit)


def test_a_flat_line_does_not_grow() -> None:
    trend = line(*[30_000.0] * 40)
    assert (trend.slope, trend.rise, trend.grows) == (0.0, 0.0, False)


def test_a_steady_rise_grows() -> None:
    trend = line(*[30_000 + 50 * number for number in range(40)])
    assert trend.slope == pytest.approx(25)  # a second
    assert trend.rise == pytest.approx(25 * 58)  # after the first quarter of 80 seconds
    assert trend.grows


def test_a_rise_below_what_is_allowed_does_not() -> None:
    assert not line(*[30_000 + number for number in range(40)]).grows


def test_noise_and_bursts_are_no_slope() -> None:
    chance = random.Random(7)
    noisy = [30_000 + chance.uniform(-200, 200) for _ in range(40)]
    noisy[-3:] = [60_000] * 3  # a burst at the end
    assert not line(*noisy).grows


def test_a_rise_in_noise_is_one() -> None:
    chance = random.Random(7)
    assert line(*[30_000 + 60 * number + chance.uniform(-200, 200) for number in range(40)]).grows


def test_a_warm_up_does_not_count() -> None:
    assert not line(*[10_000 + 2_000 * number for number in range(10)], *[30_000.0] * 30).grows


def test_what_falls_does_not_grow() -> None:
    assert not line(*[30_000 - 100 * number for number in range(40)]).grows


def test_what_is_near_zero_has_slack() -> None:
    few = Limit(share=0.0, slack=2)
    assert not line(*[5.0] * 30, *[6.0] * 10, limit=few).grows
    assert line(*[5 + number // 4 for number in range(40)], limit=few).grows  # a descriptor every eight seconds


def test_of_few_samples_nothing_is_said() -> None:
    trend = line(*[1_000.0 * number for number in range(14)])
    assert trend.slope is None
    assert not trend.grows
    assert "too few" in str(trend)


def test_it_says_what_it_found() -> None:
    assert str(line(*[30_000 + 50 * number for number in range(40)])) == (
        "relay memory: 31225 KiB, +1.45e+03 in 58 s (allowed 624)"
    )
