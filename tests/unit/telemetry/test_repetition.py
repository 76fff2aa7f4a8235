"""Repetitions are counted, and nothing is lost: every line is written or included in a count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.errors import ConfigurationError, TransportError, WgvsockError
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.repetition import BURST, INTERVAL, MAX_KINDS, Repetition, kind_of


def record(
    message: str = "stream %s accepted",
    *arguments: object,
    place: int = 1,
    level: int = logging.INFO,
    **extra: Any,
) -> logging.LogRecord:
    made = {"pathname": "x.py", "lineno": place, "levelno": level, "levelname": "INFO", "msg": message}
    return logging.makeLogRecord({**made, "args": arguments or ("tcp:10.0.0.1:1",), **extra})


def texts(records: Sequence[logging.LogRecord]) -> list[str]:
    return [entry.getMessage() for entry in records]


def test_a_burst_passes_and_the_rest_is_one_line() -> None:
    repetition = Repetition()
    passed = [repetition.admit(record("from %d", number), now=number / 1000) for number in range(21_308)]
    assert [len(lines) for lines in passed] == [1] * BURST + [0] * (21_308 - BURST)
    assert repetition.due == INTERVAL
    assert not repetition.ended(INTERVAL - 0.001)
    (line,) = repetition.ended(INTERVAL)
    assert line.getMessage() == f"… and {21_308 - BURST} more like it (last: from 21307)"
    assert line.__dict__["wgvsock_fields"] == {"repeated": 21_308 - BURST}


def test_a_flood_has_one_line_an_interval_and_an_end() -> None:
    repetition, now, written = Repetition(), 0.0, 0
    while now < 10 * INTERVAL:  # 100 a second
        written += len(repetition.admit(record(), now))
        now += 0.01
    assert written <= BURST + 10
    told = repetition.ended(now + INTERVAL)
    assert len(told) == 1
    assert repetition.due is None


def test_a_few_a_minute_are_all_seen() -> None:
    repetition = Repetition()
    assert all(len(repetition.admit(record(), number * INTERVAL / BURST)) == 1 for number in range(100))


def test_after_a_quiet_interval_there_is_a_burst_again() -> None:
    repetition = Repetition()
    for _ in range(1000):
        repetition.admit(record(), 0.0)
    assert texts(repetition.admit(record(), INTERVAL)) == [
        f"… and {1000 - BURST} more like it (last: stream tcp:10.0.0.1:1 accepted)"
    ]
    assert texts(repetition.admit(record(), 2 * INTERVAL))[0].startswith("… and 1 more like it")
    assert len(repetition.admit(record(), 2 * INTERVAL)) == 1


def test_what_a_stranger_varies_is_no_kind_of_its_own() -> None:
    one = record("refused %s", "a", **fields(address="tcp:10.0.0.1:1"))
    other = record("refused %s", "b", **fields(address="tcp:10.0.0.2:9"))
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    "other",
    [
        record(place=2),
        record(level=logging.WARNING),
        record("%s", ConfigurationError("no")),
        record("%s", RejectedDocumentError(why="no")),
        record(**fields(error=TransportError("no"))),
        record(exc_info=(ValueError, ValueError("x"), None)),
    ],
)
def test_what_differs_in_meaning_comes_through_at_once(other: logging.LogRecord) -> None:
    repetition = Repetition()
    for _ in range(1000):
        repetition.admit(record(), 0.0)
        repetition.admit(record("%s", WgvsockError("another")), 0.0)
    assert repetition.admit(other, 0.0) == [other]


def test_a_counted_line_has_level_and_fields_of_the_last() -> None:
    repetition = Repetition()
    error = TransportError("cannot connect", why="refused")
    for number in range(BURST + 2):
        repetition.admit(record("%s", error, level=logging.WARNING, **fields(code="WGV-E010", port=number)), 0.0)
    (line,) = repetition.all()
    assert line.levelno == logging.WARNING
    assert line.getMessage() == "… and 2 more like it (last: cannot connect: refused)"
    assert line.__dict__["wgvsock_fields"] == {"code": "WGV-E010", "port": BURST + 1, "repeated": 2}
    assert repetition.all() == []


def test_the_table_is_bounded() -> None:
    repetition = Repetition()
    for _ in range(BURST + 5):
        repetition.admit(record(place=0), 0.0)
    told = [line for place in range(1, 10 * MAX_KINDS) for line in repetition.admit(record(place=place), 0.0)]
    assert len(repetition._intervals) == MAX_KINDS
    assert [text for text in texts(told) if text.startswith("…")] == [
        "… and 5 more like it (last: stream tcp:10.0.0.1:1 accepted)"
    ]


@given(st.lists(st.tuples(st.integers(0, MAX_KINDS + 3), st.floats(0, INTERVAL), st.integers(1, 40)), max_size=60))
def test_nothing_is_lost(steps: list[tuple[int, float, int]]) -> None:
    repetition, now, came, written = Repetition(), 0.0, 0, []
    for place, pause, count in steps:
        now += pause
        for _ in range(count):
            written += repetition.admit(record(place=place), now)
            came += 1
    written += repetition.all()
    assert came == sum(line.__dict__.get("wgvsock_fields", {"repeated": 1})["repeated"] for line in written)
