from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.cli.units import count, duration, milliseconds, number, since, size

ODD: list[object] = [None, True, "x", [], float("nan"), float("inf"), 10**4000, -(10**4000)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.3, "0.3 s"), (1, "1 s"), (59.4, "59 s"), (59.9, "1 min"), (60, "1 min"), (723.4, "12 min 3 s"),
        (3600, "1 h"), (7500, "2 h 5 min"), (86_400, "1 d"), (273_600, "3 d 4 h"), (-1, "?"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("found", "text"), [(0.412, "0.41 ms"), (12.4, "12 ms"), (999.6, "1000 ms"), (1600, "1.6 s"), (-1, "?")]
)
def test_short_times(found: float, text: str) -> None:
    assert milliseconds(found) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [(0, "0 B"), (830, "830 B"), (1024, "1.0 KiB"), (1_284_333, "1.2 MiB"), (200 << 20, "200 MiB"), (-1, "?"),
     (9e14, "819 TiB")],
)  # fmt: skip
def test_sizes(found: float, text: str) -> None:
    assert size(found) == text


def test_a_rate() -> None:
    assert size(2048, per="/s") == "2.0 KiB/s"


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_number(odd: object) -> None:
    assert number(odd) is None
    assert duration(odd) == milliseconds(odd) == size(odd) == "?"
    assert count(odd, "time") == "? times"
    assert since(odd, 0.0) == "?"


def test_counts() -> None:
    assert [count(found, "time") for found in (0, 1, 3)] == ["0 times", "1 time", "3 times"]
    assert count(2, "address", "addresses") == "2 addresses"


def test_since() -> None:
    assert since("2026-11-18T15:06:00+00:00", 1_795_014_400.0) == "40 s"
    assert since("2026-11-18T15:06:00+00:00", 0.0) == "0 s"  # a clock that was set back
    assert since("yesterday", 0.0) == "?"


@given(st.floats(0, 1e12, allow_nan=False))
def test_a_duration_has_two_units_at_most(seconds: float) -> None:
    words = duration(seconds).split()
    assert len(words) in {2, 4}
