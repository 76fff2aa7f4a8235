"""A hostile application's output, lines joined, losses counted, and the state that follows from reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.relay.enclaves.application import (
    LINE_COST,
    MAX_KEPT,
    MAX_LINE,
    MAX_SHOWN,
    YOUNG,
    ApplicationRecord,
    visible,
)
from wgvsock.telemetry.reports import ApplicationState, Change, Heartbeat, Hello, Output, Phase, StreamName

RUNNING = ApplicationState(Phase.RUNNING, starts=1)
ENDED = ApplicationState(Phase.ENDED, starts=1, code=3)


class Told:
    """A record, its output, and an agent that numbers its reports."""

    def __init__(self, acknowledged: int = 0) -> None:
        self.shown: list[str] = []
        self.record = ApplicationRecord("wallet", self.shown.append)
        self.number = self.offset = self.lines = 0
        self.record.begin()
        self.record.take(Hello("a", acknowledged, RUNNING), 100.0)

    def write(self, data: bytes, stream: StreamName = "stdout", *, lost: bool = False) -> None:
        """The application writes. What is lost does not arrive here."""
        self.number += 1
        report = Output(self.number, 7, stream, data, self.offset, self.lines)
        self.offset += len(data)
        self.lines += data.count(b"\n")
        if not lost:
            self.record.take(report, 100.0)

    def change(self, event: str, state: ApplicationState, now: float = 100.0) -> None:
        self.number += 1
        self.record.take(Change(self.number, 7, event, state), now)

    def texts(self) -> list[str]:
        return [line.text for line in self.record.lines_after(0, 10_000)]


def test_each_line_is_shown_with_its_enclave_and_its_stream() -> None:
    told = Told()
    told.write(b"one\ntwo\n")
    told.write(b"bad\n", "stderr")
    assert told.shown == [
        "enclave=wallet stream=stdout one",
        "enclave=wallet stream=stdout two",
        "enclave=wallet stream=stderr bad",
    ]
    (_, _, line) = told.record.lines_after(0, 10)
    assert (line.number, line.time_ms, line.stream, line.text) == (3, 7, "stderr", "bad")


def test_lines_are_put_together_wherever_they_were_cut() -> None:
    told = Told()
    word = "grüß".encode()
    for position in range(len(word)):
        told.write(word[position : position + 1])
        told.write(b"e", "stderr")
    told.write(b"\r\n")
    assert told.texts() == ["grüß"]
    told.change("exited", ENDED)
    assert told.texts() == ["grüß", "eeeeee"]  # without its end, at the end of all


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        (b"one\rtwo", r"one\rtwo"),
        (b"\xff\xfe\x00", r"\xff\xfe\u0000"),
        ("\u202eevil".encode(), r"\u202eevil"),
        (b"a\tb", "a   b"),
        (b'{"event":"exited","state":{}}', '{"event":"exited","state":{}}'),
        (b"enclave=other stream=stdout x", "enclave=other stream=stdout x"),
        (b"", ""),
    ],
)
def test_nothing_steers_a_terminal_or_passes_for_anothers(data: bytes, text: str) -> None:
    told = Told()
    told.write(data + b"\n")
    assert told.shown == [f"enclave=wallet stream=stdout {text}"]
    assert told.shown[0].isprintable()


@given(st.binary(max_size=5000))
def test_whatever_is_written_a_line_is_one_printable_line(data: bytes) -> None:
    assert visible(data).isprintable()
    assert len(visible(data)) <= MAX_SHOWN + 40


def test_an_endless_line_becomes_several_and_nothing_grows() -> None:
    told = Told()
    for _ in range(100):
        told.write(b"x" * 16_384)
    assert all(len(text) == MAX_LINE for text in told.texts())
    assert sum(map(len, told.record._partial.values())) <= MAX_LINE
    told.write(b"\n")
    told.write(b"y" * (MAX_LINE + 1) + b"\n")
    assert told.texts()[-2:] == ["y" * MAX_LINE, "y"]


def test_what_is_kept_is_bounded() -> None:
    told = Told()
    for _ in range(1000):
        told.write(b"z\n" * 100)
    lines = told.record.lines_after(0, 10**6)
    assert len(lines) * (1 + LINE_COST) <= MAX_KEPT
    assert lines[-1].number == told.record.last_line == 100_000


def test_lines_behind_a_number() -> None:
    told = Told()
    told.write(b"a\nb\nc\nd\n")
    assert [line.text for line in told.record.lines_after(1, 2)] == ["b", "c"]
    assert told.record.lines_after(4, 2) == []
    assert told.record.lines_after(99, 2) == []


def test_a_report_twice_counts_once() -> None:
    told = Told()
    told.write(b"a\n")
    told.record.take(Output(1, 7, "stdout", b"a\n", 0, 0), 100.0)
    told.record.take(Change(1, 7, "exited", ENDED), 100.0)
    told.record.take(Heartbeat(), 100.0)
    assert told.texts() == ["a"]
    assert not told.record.has_ended


def test_a_loss_is_counted_exactly_and_said() -> None:
    told = Told()
    told.write(b"first\nhalf a li")
    told.write(b"ne\nsecond\n", lost=True)
    told.write(b"third\n", lost=True)
    told.write(b"last\n")
    assert told.texts() == ["first", "half a li", "3 lines (16 bytes) were written faster than read", "last"]
    snapshot = told.record.snapshot()
    assert snapshot is not None
    assert (snapshot.lost_lines, snapshot.lost_bytes) == (3, 16)
    assert "enclave=wallet stream=lost 3 lines (16 bytes) were written faster than read" in told.shown


def test_a_relay_that_starts_again_shows_only_what_the_earlier_one_did_not() -> None:
    told = Told(acknowledged=2)
    for word in (b"a\n", b"b\n", b"c\n"):
        told.write(word)
    assert told.texts() == ["a", "b", "c"]  # for wgvsock logs
    assert told.shown == ["enclave=wallet stream=stdout c"]
    snapshot = told.record.snapshot()
    assert snapshot is not None
    assert snapshot.lost_lines == 0


def test_what_an_earlier_relay_had_read_is_no_loss() -> None:
    told = Told(acknowledged=1)
    told.write(b"a\n", lost=True)
    told.write(b"b\n")
    assert told.texts() == ["b"]


def test_the_same_stream_again_goes_on() -> None:
    told = Told()
    told.write(b"a\nb")
    told.record.take(Hello("a", 1, RUNNING), 100.0)
    assert told.record.cursor == 1
    told.write(b"c\n")
    assert told.texts() == ["a", "bc"]


def test_another_agent_begins_anew() -> None:
    told = Told()
    told.write(b"a\nrest")
    told.record.begin()
    assert told.record.snapshot() is None
    told.record.take(Hello("b", 0, RUNNING), 200.0)
    assert (told.record.source, told.record.cursor) == ("b", 0)
    told.record.take(Output(1, 7, "stdout", b"new\n", 0, 0), 200.0)
    assert told.texts() == ["a", "new"]


def test_the_end_is_one_when_everything_before_it_was_read() -> None:
    told = Told()
    told.record.take(Hello("a", 0, ENDED), 100.0)
    assert not told.record.has_ended
    told.write(b"last words\n")
    told.change("exited", ENDED)
    assert told.record.has_ended
    assert told.record.died_young
    told.record.begin()
    assert not told.record.has_ended


def test_an_end_after_a_long_life_is_no_failure_to_start() -> None:
    told = Told()
    told.change("exited", ENDED, now=100.0 + YOUNG)
    assert not told.record.died_young


@pytest.mark.parametrize(
    ("state", "ready"),
    [
        (RUNNING, None),
        (ApplicationState(Phase.RUNNING, probed=True), False),
        (ApplicationState(Phase.RUNNING, probed=True, ready=True), True),
        (ApplicationState(Phase.RUNNING, probed=True, ready=False), False),
        (ENDED, None),
    ],
)
def test_readiness(state: ApplicationState, ready: bool | None) -> None:
    told = Told()
    told.change("started", state)
    assert told.record.ready() is ready


def test_before_the_agent_was_asked_nothing_is_ready_and_without_reports_nobody_waits() -> None:
    record = ApplicationRecord("wallet", lambda _: None)
    record.begin()
    assert record.ready() is False
    record.asked = True
    assert record.ready() is None
    assert record.snapshot() is None
