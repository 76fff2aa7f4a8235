"""The agent's reports about its application: one JSON object per line (docs/protocol/reports.md).

The agent is attested, but the behaviour of its application is not. So the relay checks every field and limits every
length before it keeps anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal, NoReturn, cast

from wgvsock.errors import RemoteProtocolError
from wgvsock.system.processor import ProcessorTimes

REPORT_PORT: Final = 51822
"""Default port for reports: the tunnel's port plus 2."""

MAX_OUTPUT: Final = 4096
"""Bytes of output in one report. If all are line feeds, the relay needs 8 ms for them, in which no packet passes."""

MAX_REPORT: Final = 32_768
"""Bytes of one line. JSON writes a byte as at most six characters, and the rest of a report has less than 1 KiB."""

MAX_WHY: Final = 200
"""Characters of a reason."""

MAX_PROCESSORS: Final = 1024
"""Processors of an enclave: as many as `launch.cpu_count` allows."""

_MAX_NUMBER: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""

StreamName = Literal["stdout", "stderr"]


class Phase(Enum):
    """The phases of an application's life."""

    WAITING = "waiting"
    """It has not been started yet, or there is none."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """It has ended and will be started again after a pause."""
    ENDED = "ended"
    """It has ended for good, and the enclave ends with it."""


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """Everything that is known about an application at one moment.

    Attributes:
        phase: The phase of its life.
        starts: How many times it was started.
        code: Exit status of the last process that ended. None: none has ended, or a signal ended it.
        signal: Number of the signal that ended it, or None.
        ready: The result of its probe. None: it has no probe, or the probe has not run yet.
        why: The reason of a failed probe.
        probed: Whether it has a probe.
    """

    phase: Phase = Phase.WAITING
    starts: int = 0
    code: int | None = None
    signal: int | None = None
    ready: bool | None = None
    why: str = ""
    probed: bool = False

    @property
    def exit_status(self) -> int | None:
        """The exit status as a shell shows it: 128 + N for signal N. None: no process has ended."""
        return self.code if self.signal is None else 128 + self.signal

    def ended(self, returncode: int, phase: Phase) -> ApplicationState:
        """The state after a process has ended. `returncode` is -N for signal N."""
        code, signal = (returncode, None) if returncode >= 0 else (None, -returncode)
        ready, why = (False, "it is not running") if self.probed else (None, "")
        return replace(self, phase=phase, code=code, signal=signal, ready=ready, why=why)


@dataclass(frozen=True, slots=True)
class Hello:
    """The first report on each stream.

    Attributes:
        source: Random text that the agent chose when it started. Report numbers are valid only for one source.
        acknowledged: Number of the last report that a relay acknowledged.
        state: The application's state.
        time_ms: Unix time in milliseconds, by the enclave's clock.
        processor: The enclave's processor times. None: the agent does not tell them.
    """

    source: str
    acknowledged: int
    state: ApplicationState
    time_ms: int = 0
    processor: ProcessorTimes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """The application's state has changed.

    Attributes:
        number: Consecutive number of the report.
        time_ms: Unix time in milliseconds, by the enclave's clock.
        event: ``started``, ``ready``, ``not_ready`` or ``exited``.
        state: The complete new state, so that the next report makes up for a lost one.
    """

    number: int
    time_ms: int
    event: str
    state: ApplicationState


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of the application's output. It may begin and end anywhere in a line.

    Attributes:
        number: Consecutive number of the report.
        time_ms: Unix time in milliseconds, by the enclave's clock.
        stream: ``stdout`` or ``stderr``.
        data: At most `MAX_OUTPUT` bytes.
        offset: Bytes that were written to both streams before it, since the agent started.
        lines: Line feeds among those bytes. Compared with earlier reports, both tell exactly what was lost in between.
    """

    number: int
    time_ms: int
    stream: StreamName
    data: bytes
    offset: int
    lines: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing has happened, but the agent is alive.

    Attributes:
        time_ms: Unix time in milliseconds, by the enclave's clock.
        processor: The enclave's processor times. None: the agent does not tell them.
    """

    time_ms: int = 0
    processor: ProcessorTimes | None = None


Report = Hello | Change | Output | Heartbeat

_EVENTS: Final = frozenset({"started", "ready", "not_ready", "exited"})
_SOURCE_LENGTH: Final = 32


def encode(report: Report) -> bytes:
    """The report's line, at most `MAX_REPORT` bytes, including its line feed."""
    match report:
        case Hello(source, acknowledged, state, time_ms, processor):
            values = {"event": "hello", "time_ms": time_ms, "source": source, "acknowledged": acknowledged}
            values |= {"state": _state_values(state), **_processor_values(processor)}
        case Change(number, time_ms, event, state):
            values = {"number": number, "time_ms": time_ms, "event": event, "state": _state_values(state)}
        case Output(number, time_ms, stream, data, offset, lines):
            values = {
                "number": number,
                "time_ms": time_ms,
                "event": "output",
                "stream": stream,
                "offset": offset,
                "lines": lines,
                # A byte that is not UTF-8, such as part of a split character, becomes a lone surrogate.
                "text": data.decode("utf-8", "surrogateescape"),
            }
        case Heartbeat(time_ms, processor):
            values = {"event": "heartbeat", "time_ms": time_ms, **_processor_values(processor)}
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Report:
    """Read a report.

    Args:
        line: The line, with or without its line feed.

    Raises:
        RemoteProtocolError: The line is too long, or is not a valid report.
    """
    if len(line) > MAX_REPORT:
        raise _refused(f"it is longer than {MAX_REPORT} bytes")
    try:
        values = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _refused("it is not JSON") from None
    if not isinstance(values, dict):
        raise _refused("it is not an object")
    event = values.get("event")
    time_ms = _number(values, "time_ms")
    if event == "heartbeat":
        return Heartbeat(time_ms, _read_processor(values))
    if event == "hello":
        source = _text(values, "source", _SOURCE_LENGTH)
        state = _read_state(values.get("state"))
        return Hello(source, _number(values, "acknowledged"), state, time_ms, _read_processor(values))
    number = _number(values, "number")
    if event == "output":
        return Output(
            number, time_ms, _stream(values), _data(values), _number(values, "offset"), _number(values, "lines")
        )
    if isinstance(event, str) and event in _EVENTS:
        return Change(number, time_ms, event, _read_state(values.get("state")))
    raise _refused("its event is unknown")


def _state_values(state: ApplicationState) -> dict[str, Any]:
    return {
        "phase": state.phase.value,
        "starts": state.starts,
        "code": state.code,
        "signal": state.signal,
        "ready": state.ready,
        "why": state.why[:MAX_WHY],
        "probed": state.probed,
    }


def _read_state(values: object) -> ApplicationState:
    if not isinstance(values, dict):
        raise _refused("its state is not an object")
    ready, probed = values.get("ready"), values.get("probed")
    if not isinstance(ready, bool | None) or not isinstance(probed, bool):
        raise _refused("its state is invalid")
    try:
        phase = Phase(values.get("phase"))
    except ValueError:
        raise _refused("its phase is unknown") from None
    return ApplicationState(
        phase=phase,
        starts=_number(values, "starts"),
        code=_optional(values, "code", 255),
        signal=_optional(values, "signal", 64),
        ready=ready,
        why=_text(values, "why", MAX_WHY),
        probed=probed,
    )


def _processor_values(times: ProcessorTimes | None) -> dict[str, Any]:
    return {} if times is None else {"processor": dataclasses.asdict(times)}


def _read_processor(report: Mapping[str, Any]) -> ProcessorTimes | None:
    """A report's processor times, or None if it has none: agents before this version do not tell them."""
    values = report.get("processor")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _refused("its processor times are not an object")
    return ProcessorTimes(
        clock_ms=_number(values, "clock_ms"),
        busy_ms=_number(values, "busy_ms"),
        own_ms=_number(values, "own_ms"),
        processors=_number(values, "processors", MAX_PROCESSORS),
    )


def _number(values: Mapping[str, Any], key: str, highest: int = _MAX_NUMBER) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 <= value <= highest:
        raise _refused(f'"{key}" is not a number from 0 to {highest}')
    return value


def _optional(values: Mapping[str, Any], key: str, highest: int) -> int | None:
    return None if values.get(key) is None else _number(values, key, highest)


def _text(values: Mapping[str, Any], key: str, longest: int) -> str:
    value = values.get(key)
    if not isinstance(value, str) or len(value) > longest:
        raise _refused(f'"{key}" is not text of at most {longest} characters')
    return value


def _stream(values: Mapping[str, Any]) -> StreamName:
    if (name := values.get("stream")) not in ("stdout", "stderr"):
        raise _refused("its stream is unknown")
    return cast("StreamName", name)


def _data(values: Mapping[str, Any]) -> bytes:
    try:
        data = _text(values, "text", MAX_OUTPUT).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _refused('"text" contains characters that no byte maps to') from None
    if len(data) > MAX_OUTPUT:
        raise _refused(f'"text" has more than {MAX_OUTPUT} bytes')
    return data


def _refuse_constant(_constant: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are not JSON


def _refused(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "cannot read the agent's report", why=why, fix="use the same version of wgvsock at both ends"
    )
