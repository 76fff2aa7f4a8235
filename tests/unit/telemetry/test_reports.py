"""Reports on the wire: written ones are read back, and an invalid one is refused before it is kept."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.errors import RemoteProtocolError
from wgvsock.system.processor import ProcessorTimes
from wgvsock.telemetry.reports import (
    MAX_OUTPUT,
    MAX_PROCESSORS,
    MAX_REPORT,
    MAX_WHY,
    ApplicationState,
    Change,
    Heartbeat,
    Hello,
    Output,
    Phase,
    Report,
    decode,
    encode,
)

STATE = ApplicationState(
    Phase.RUNNING, starts=2, signal=9, ready=False, why="it answers with HTTP status 503", probed=True
)
TIMES = ProcessorTimes(clock_ms=2**53 - 1, busy_ms=0, own_ms=7, processors=MAX_PROCESSORS)


@pytest.mark.parametrize(
    "report",
    [
        Hello("ab" * 16, 7, STATE, 1_800_000_000_000),
        Hello("", 0, ApplicationState()),
        Change(1, 1_800_000_000_000, "exited", ApplicationState(Phase.ENDED, starts=1, code=3)),
        Output(5, 1, "stderr", "grüß\n".encode(), offset=4, lines=1),
        Heartbeat(5),
        Heartbeat(),
        Heartbeat(5, TIMES),
        Hello("a", 7, STATE, 5, TIMES),
    ],
)
def test_what_is_written_is_read_back(report: Report) -> None:
    line = encode(report)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode(line) == report


@given(st.binary(max_size=200))
def test_every_byte_survives_wherever_a_character_is_cut(data: bytes) -> None:
    report = Output(1, 0, "stdout", data, 0, 0)
    assert decode(encode(report)) == report


@pytest.mark.parametrize("report", [Heartbeat(5, TIMES), Hello("a", 7, STATE, 5, TIMES)])
def test_an_older_agent_tells_no_processor_times(report: Heartbeat | Hello) -> None:
    values = json.loads(encode(report))
    del values["processor"]
    assert decode(json.dumps(values).encode()) == replace(report, processor=None)
    assert "processor" not in json.loads(encode(replace(report, processor=None)))


@pytest.mark.parametrize(
    "times",
    [
        7,
        [],
        {},
        {"clock_ms": -1},
        {"clock_ms": 2**53},
        {"busy_ms": 1.5},
        {"busy_ms": True},
        {"own_ms": "1"},
        {"own_ms": None},
        {"processors": MAX_PROCESSORS + 1},
    ],
)
def test_odd_processor_times_are_refused(times: Any) -> None:
    values = json.loads(encode(Heartbeat(5, TIMES)))
    values["processor"] = {**values["processor"], **times} if times and isinstance(times, dict) else times
    with pytest.raises(RemoteProtocolError):
        decode(json.dumps(values).encode())


def test_the_longest_report_fits() -> None:
    worst = Output(2**53 - 1, 2**53 - 1, "stdout", b"\xff" * MAX_OUTPUT, 2**53 - 1, 2**53 - 1)
    assert len(encode(worst)) <= MAX_REPORT
    assert decode(encode(worst)) == worst


def test_a_long_reason_is_cut_where_it_is_written() -> None:
    report = decode(encode(Change(1, 0, "not_ready", ApplicationState(why="x" * 1000))))
    assert isinstance(report, Change)
    assert report.state.why == "x" * MAX_WHY


def changed(report: Report, **values: Any) -> bytes:
    """The report's line with other values."""
    return json.dumps({**json.loads(encode(report)), **values}).encode()


OUTPUT = Output(5, 1, "stdout", b"x", 0, 0)
CHANGE = Change(1, 1, "started", STATE)


def state(**values: Any) -> bytes:
    return changed(CHANGE, state={**json.loads(encode(CHANGE))["state"], **values})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no JSON",
        b"[]",
        b"NaN",
        b"[" * 50_000,
        b'{"event":"hello","x":NaN}',
        b" " * (MAX_REPORT + 1),
        b"{}",
        b'{"event":"output"}',
        changed(OUTPUT, event="something"),
        changed(OUTPUT, number=-1),
        changed(OUTPUT, number=True),
        changed(OUTPUT, number=1.0),
        changed(OUTPUT, number=2**53),
        changed(OUTPUT, stream="stdin"),
        changed(OUTPUT, stream=["stdout"]),
        changed(OUTPUT, text=None),
        changed(OUTPUT, text="\ud800"),
        changed(OUTPUT, text="x" * (MAX_OUTPUT + 1)),
        changed(OUTPUT, text="ü" * MAX_OUTPUT),
        changed(CHANGE, state=None),
        changed(CHANGE, event=["started"]),
        state(phase="odd"),
        state(phase=[]),
        state(ready=1),
        state(probed=None),
        state(code=256),
        state(signal=-1),
        state(why=None),
        state(why="x" * (MAX_WHY + 1)),
        changed(Hello("", 0, STATE), source="x" * 33),
        changed(Hello("", 0, STATE), acknowledged="1"),
    ],
)
def test_what_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(line)


@given(st.binary(max_size=100))
def test_noise_is_refused_and_nothing_else_happens(line: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(line)


@pytest.mark.parametrize(
    ("returncode", "code", "signal", "status"), [(0, 0, None, 0), (3, 3, None, 3), (-9, None, 9, 137)]
)
def test_ends(returncode: int, code: int | None, signal: int | None, status: int) -> None:
    ended = ApplicationState(Phase.RUNNING, starts=1, ready=True, probed=True).ended(returncode, Phase.ENDED)
    assert (ended.code, ended.signal, ended.exit_status) == (code, signal, status)
    assert ended.ready is False
    assert ApplicationState(Phase.RUNNING).ended(returncode, Phase.RESTARTING).ready is None


def test_before_the_first_end_there_is_no_status() -> None:
    assert ApplicationState().exit_status is None
