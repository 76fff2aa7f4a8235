"""Rates from an agent's reports. One that lies gets an odd row, but never an impossible one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wgvsock.relay.enclaves.processor import MIN_INTERVAL, ProcessorRecord
from wgvsock.system.processor import ProcessorTimes

MOST = 2**53 - 1
TIMES = st.builds(
    ProcessorTimes, st.integers(0, MOST), st.integers(0, MOST), st.integers(0, MOST), st.integers(0, 1024)
)


def taken(*times: ProcessorTimes | None) -> ProcessorRecord:
    record = ProcessorRecord()
    for each in times:
        record.take(each)
    return record


def percents(*times: ProcessorTimes | None) -> tuple[float | None, float | None] | None:
    found = taken(*times).snapshot()
    return None if found is None else (found.percent, found.agent_percent)


def test_the_rate_is_that_between_the_last_two_reports() -> None:
    first, second = ProcessorTimes(10_000, 0, 0, 4), ProcessorTimes(15_000, 7_500, 500, 4)
    assert percents(first) == (None, None)
    assert percents(first, second) == (150.0, 10.0)
    assert percents(first, second, ProcessorTimes(20_000, 7_500, 500, 4)) == (0.0, 0.0)


def test_an_older_agent_says_nothing() -> None:
    assert percents(None) is None
    assert percents(ProcessorTimes(0, 0, 0, 1), None) == (None, None)


def test_two_reports_in_a_row_give_no_rate_of_chance() -> None:
    first, second = ProcessorTimes(10_000, 0, 0, 1), ProcessorTimes(15_000, 2_500, 0, 1)
    soon = ProcessorTimes(15_000 + MIN_INTERVAL - 1, 3_400, 0, 1)
    assert percents(first, second, soon) == (50.0, 0.0)
    assert percents(first, second, soon, ProcessorTimes(17_000, 4_000, 0, 1)) == (75.0, 0.0)  # nothing is left out


def test_another_agent_begins_anew() -> None:
    record = taken(ProcessorTimes(10_000, 0, 0, 1), ProcessorTimes(15_000, 2_500, 0, 1))
    record.clear()
    assert record.snapshot() is None
    assert percents(ProcessorTimes(10_000, 9_000, 0, 1), ProcessorTimes(3_000, 1_000, 0, 1)) == (None, None)


@given(st.lists(TIMES, max_size=5))
def test_no_report_gives_an_impossible_rate(times: list[ProcessorTimes]) -> None:
    snapshot = taken(*times).snapshot()
    if snapshot is not None:
        for percent in (snapshot.percent, snapshot.agent_percent):
            assert percent is None or 0 <= percent <= 100 * snapshot.times.processors
