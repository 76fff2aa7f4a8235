"""What a relay knows about one enclave's application: its state, its last lines of output, and how much was lost.

There is no I/O and no clock here. The agent is trusted, but its application's output is not. The output becomes lines
of limited length with only visible characters, each preceded by the names of its enclave and its stream. It can
therefore neither control a terminal nor pose as another application's output.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wgvsock.relay.enclaves.processor import ProcessorRecord, ProcessorSnapshot
from wgvsock.telemetry.reports import ApplicationState, Change, Heartbeat, Hello, Output, Phase, Report
from wgvsock.text import printable, shortened

MAX_LINE: Final = 4096
"""Bytes in a line; a longer line is split. With `MAX_SHOWN`, it stays below the 16 KiB at which container runtimes
split lines."""

MAX_SHOWN: Final = 12_000
"""Characters in a line as it is shown. A control character takes six."""

MAX_KEPT: Final = 262_144
"""Characters kept per enclave for ``wgvsock logs``: twice the size of an agent's ring buffer."""

LINE_COST: Final = 200
"""Characters that each line counts for in addition to its text."""

YOUNG: Final = 60.0
"""Seconds after attestation within which the end of an application counts as a failure to start."""

_TAB: Final = 4


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an application's output, safe to show.

    Attributes:
        number: Consecutive number within this relay process.
        time_ms: Unix time in milliseconds, by the enclave's clock.
        stream: ``stdout``, ``stderr``, or ``lost`` for a line that says how much is missing.
        text: The line without its line feed.
    """

    number: int
    time_ms: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class ApplicationSnapshot:
    """What is known about an application at one moment.

    Attributes:
        state: The application's state.
        connected: Whether its reports arrive.
        lost_lines: Number of lines of output that were discarded before the relay read them.
        lost_bytes: Number of bytes of output that were discarded before the relay read them.
    """

    state: ApplicationState
    connected: bool
    lost_lines: int
    lost_bytes: int


class ApplicationRecord:
    """Takes reports in the order in which they arrive.

    Args:
        enclave: The enclave's name.
        show: Called with each complete line of output for the relay's standard output.

    Attributes:
        state: The application's state; None before the first report.
        source: Identifies the source of the reports; ``""`` before the first report.
        cursor: Number of the last report.
        connected: Whether reports arrive.
        clock_offset: Seconds that the enclave's clock is ahead of the relay's; None if unknown.
        processor: The enclave's processor use.
        asked: Whether it is known if there are reports: some have arrived, or requests to the agent have failed.
        has_ended: Whether the application has ended for good and all earlier reports were taken.
        died_young: Whether the application, when it last ended, did so soon after its enclave was attested.
    """

    def __init__(self, enclave: str, show: Callable[[str], None]) -> None:
        self.state: ApplicationState | None = None
        self.source = ""
        self.cursor = 0
        self.connected = False
        self.asked = False
        self.clock_offset: float | None = None
        self.processor = ProcessorRecord()
        self.has_ended = False
        self.died_young = False
        self._enclave = enclave
        self._show = show
        self._began = -math.inf
        self._lines: deque[Line] = deque()
        self._size = 0
        self._last = 0
        self._partial: dict[str, bytes] = {}
        self._shown = 0  # reports up to this one were shown, by this relay or an earlier one
        self._expected: tuple[int, int] | None = (0, 0)  # bytes and line feeds so far, or None if unknown
        self._lost_lines = 0
        self._lost_bytes = 0

    def begin(self) -> None:
        """Start anew, because there is a session with another enclave."""
        self.state, self.source, self.cursor = None, "", 0
        self.asked = self.has_ended = False
        self.processor.clear()

    @property
    def last_line(self) -> int:
        """Number of the last line, or 0 if there is none."""
        return self._last

    def ready(self) -> bool | None:
        """Whether the application is ready. None means unknown and does not prevent readiness."""
        if not self.asked:
            return False
        if self.state is None or not self.state.probed:
            return None
        return self.state.ready is True

    def take(self, report: Report, now: float) -> int:
        """Take a report.

        Args:
            report: The report.
            now: Monotonic seconds.

        Returns:
            Number of lines that the report added.
        """
        before = self._last
        match report:
            case Hello():
                self._greet(report, now)
                self.processor.take(report.processor)
            case Heartbeat():
                self.processor.take(report.processor)
            case Change(number, _, _, state) if number > self.cursor:
                self.cursor, self.state = number, state
                if state.phase is not Phase.RUNNING:
                    self._flush(report.time_ms)
                if state.phase is Phase.ENDED:
                    self.has_ended = True
                    self.died_young = now - self._began < YOUNG
            case Output(number) if number > self.cursor:
                self._count_loss(report)
                self.cursor = number
                self._write(report)
            case Change() | Output():
                pass
        return self._last - before

    def lines_after(self, number: int, most: int) -> list[Line]:
        """At most `most` of the kept lines after a line number, the oldest first."""
        behind = min(len(self._lines), max(0, self._last - number))
        first = len(self._lines) - behind
        return [self._lines[position] for position in range(first, min(first + most, len(self._lines)))]

    def snapshot(self) -> ApplicationSnapshot | None:
        """What is known, or None if there was no report, or the application has not been started yet."""
        if self.state is None or self.state.phase is Phase.WAITING:
            return None
        return ApplicationSnapshot(self.state, self.connected, self._lost_lines, self._lost_bytes)

    def processor_snapshot(self) -> ProcessorSnapshot | None:
        """The enclave's processor use, or None if it is unknown or no reports arrive."""
        return self.processor.snapshot() if self.connected else None

    def _greet(self, hello: Hello, now: float) -> None:
        self.connected = self.asked = True
        if hello.source != self.source:
            self._began = now
            self._partial.clear()
            self.processor.clear()
            self.source, self.cursor = hello.source, 0
            self._shown = hello.acknowledged
            # What an earlier relay has read may no longer be available.
            self._expected = None if hello.acknowledged else (0, 0)
        self.state = hello.state

    def _count_loss(self, report: Output) -> None:
        if self._expected is not None and report.offset > self._expected[0]:
            lost_bytes, lost_lines = report.offset - self._expected[0], max(0, report.lines - self._expected[1])
            self._lost_bytes += lost_bytes
            self._lost_lines += lost_lines
            self._flush(report.time_ms)
            self._add("lost", report.time_ms, f"{lost_lines} lines ({lost_bytes} bytes) were written faster than read")
        self._expected = report.offset + len(report.data), report.lines + report.data.count(b"\n")

    def _write(self, report: Output) -> None:
        *lines, rest = (self._partial.pop(report.stream, b"") + report.data).split(b"\n")
        for line in lines:
            for begin in range(0, len(line) or 1, MAX_LINE):
                self._add(report.stream, report.time_ms, visible(line[begin : begin + MAX_LINE]))
        while len(rest) > MAX_LINE:
            self._add(report.stream, report.time_ms, visible(rest[:MAX_LINE]))
            rest = rest[MAX_LINE:]
        if rest:
            self._partial[report.stream] = rest

    def _flush(self, time_ms: int) -> None:
        """Turn incomplete lines into lines."""
        for stream, rest in self._partial.items():
            self._add(stream, time_ms, visible(rest))
        self._partial.clear()

    def _add(self, stream: str, time_ms: int, text: str) -> None:
        self._last += 1
        self._lines.append(Line(self._last, time_ms, stream, text))
        self._size += len(text) + LINE_COST
        while self._size > MAX_KEPT:
            self._size -= len(self._lines.popleft().text) + LINE_COST
        if self.cursor > self._shown or stream == "lost":
            self._show(f"enclave={self._enclave} stream={stream} {text}")


def visible(line: bytes) -> str:
    """Convert a line of arbitrary bytes to text that is safe to show. Bytes that are not UTF-8 become hexadecimal."""
    text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace").expandtabs(_TAB)
    return shortened(printable(text), MAX_SHOWN)
