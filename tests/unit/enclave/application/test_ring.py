"""The ring of reports: numbered without gaps, bounded, read by a cursor that neither loses nor repeats kept ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wgvsock.enclave.application.ring import ENTRY_COST, MAX_CHANGES, Ring
from wgvsock.telemetry.reports import MAX_OUTPUT, ApplicationState, Change, Output, Phase

RUNNING = ApplicationState(Phase.RUNNING, starts=1)


def read_all(ring: Ring, cursor: int = 0) -> list[Output | Change]:
    found = []
    while (report := ring.after(cursor)) is not None:
        found.append(report)
        cursor = report.number
    return found


def test_reports_are_read_in_order_and_once() -> None:
    ring = Ring(4096)
    ring.change("started", RUNNING, 1)
    ring.write("stdout", b"one\n", 2)
    ring.write("stderr", b"two\n", 3)
    assert ring.change("exited", ApplicationState(Phase.ENDED, starts=1, code=3), 4) == 4
    reports = read_all(ring)
    assert [report.number for report in reports] == [1, 2, 3, 4]
    assert reports[2] == Output(3, 3, "stderr", b"two\n", offset=4, lines=1)
    assert read_all(ring, 3) == reports[3:]
    assert ring.after(4) is None
    assert ring.after(99) is None
    assert ring.state.code == 3


def test_the_oldest_output_is_given_up_and_changes_of_state_never() -> None:
    ring = Ring(10 * (ENTRY_COST + 4))
    ring.change("started", RUNNING, 0)
    for number in range(100):
        ring.write("stdout", b"%03d\n" % number, 0)
    reports = read_all(ring)
    assert isinstance(reports[0], Change)
    outputs = [report for report in reports if isinstance(report, Output)]
    assert [output.data for output in outputs] == [b"%03d\n" % number for number in range(90, 100)]
    assert (outputs[0].offset, outputs[0].lines) == (360, 90)  # what the relay computes the loss from
    assert len(read_all(ring, 1)) == 10


def test_a_cursor_in_what_was_given_up_goes_on_with_what_is_left() -> None:
    ring = Ring(4096)
    for _ in range(200):
        ring.write("stdout", b"x" * 100, 0)
    ring.change("exited", RUNNING, 0)
    first = ring.after(5)
    assert isinstance(first, Output)
    assert first.number > 6


def test_a_large_piece_is_cut() -> None:
    ring = Ring(1 << 20)
    ring.write("stdout", b"a" * (2 * MAX_OUTPUT + 1), 0)
    assert [len(report.data) for report in read_all(ring) if isinstance(report, Output)] == [MAX_OUTPUT, MAX_OUTPUT, 1]


def test_single_bytes_cost_what_they_need() -> None:
    ring = Ring(64 * ENTRY_COST)
    for _ in range(10_000):
        ring.write("stdout", b"x", 0)
    assert len(read_all(ring)) <= 64


def test_changes_are_bounded_as_well() -> None:
    ring = Ring(4096)
    for starts in range(1000):
        ring.change("started", ApplicationState(Phase.RUNNING, starts=starts), 0)
    reports = read_all(ring)
    assert len(reports) == MAX_CHANGES
    assert reports[-1].number == 1000
    assert ring.after(3) == reports[0]


def test_an_acknowledgement_only_goes_forward_and_never_beyond_the_last() -> None:
    ring = Ring(4096)
    ring.write("stdout", b"x", 0)
    ring.write("stdout", b"x", 0)
    for number, expected in ((3, 0), (2, 2), (1, 2)):
        ring.acknowledge(number)
        assert ring.acknowledged == expected


def test_whoever_waits_is_told() -> None:
    ring, told = Ring(4096), []
    ring.on_added = lambda: told.append(ring.last)
    ring.write("stdout", b"x", 0)
    ring.change("started", RUNNING, 0)
    assert told == [1, 2]


@given(st.lists(st.tuples(st.sampled_from(["write", "change", "read"]), st.integers(1, 40_000)), max_size=60))
def test_whatever_is_written_the_ring_stays_bounded_and_in_order(steps: list[tuple[str, int]]) -> None:
    ring, cursor, limit = Ring(50_000), 0, 50_000
    for step, size in steps:
        if step == "write":
            ring.write("stdout", b"y" * size, 0)
        elif step == "change":
            ring.change("started", RUNNING, 0)
        elif (report := ring.after(cursor)) is not None:
            assert report.number > cursor
            cursor = report.number
        kept = [report for report in read_all(ring) if isinstance(report, Output)]
        assert sum(len(report.data) + ENTRY_COST for report in kept) <= limit
