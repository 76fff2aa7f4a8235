"""The reports that a relay may still ask for: numbered and bounded. The oldest output is dropped first.

No I/O and no clock. One consumer reads at its own pace, using a cursor: the number of the last report that it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from wgvsock.telemetry.reports import MAX_OUTPUT, ApplicationState, Change, Output, StreamName

ENTRY_COST: Final = 256
"""Bytes that each piece of output counts in addition to its own: Python's overhead for storing it. An application that
writes one byte at a time therefore cannot make the ring exceed its limit."""

MAX_CHANGES: Final = 64
"""State changes to keep, however much output comes in between. Each has the whole state, so the last would suffice."""


class Ring:
    """Holds reports.

    Args:
        limit: Bytes of output to keep, including `ENTRY_COST` for each piece.

    Attributes:
        last: Number of the last report, 0 if there is none.
        state: The application's current state.
        acknowledged: Number of the last report that the relay has acknowledged.
        on_added: Called after each report.
    """

    def __init__(self, limit: int) -> None:
        self.last = 0
        self.state = ApplicationState()
        self.acknowledged = 0
        self.on_added: Callable[[], None] = lambda: None
        self._limit = limit
        self._size = 0
        self._offset = 0
        self._lines = 0
        self._reports: dict[int, Output | Change] = {}
        self._outputs: deque[int] = deque()
        self._changes: deque[int] = deque()

    def write(self, stream: StreamName, data: bytes, time_ms: int) -> None:
        """Store output, dropping the oldest output that no longer fits.

        Args:
            stream: The stream that it was written to.
            data: The output, any number of bytes. It is split into pieces of at most `MAX_OUTPUT`.
            time_ms: Unix time in milliseconds.
        """
        for begin in range(0, len(data), MAX_OUTPUT):
            piece = data[begin : begin + MAX_OUTPUT]
            self._add(Output(self.last + 1, time_ms, stream, piece, self._offset, self._lines), self._outputs)
            self._offset += len(piece)
            self._lines += piece.count(b"\n")
            self._size += len(piece) + ENTRY_COST
        while self._size > self._limit and len(self._outputs) > 1:
            oldest = self._reports.pop(self._outputs.popleft())
            assert isinstance(oldest, Output)  # noqa: S101 - the queue has only numbers of outputs
            self._size -= len(oldest.data) + ENTRY_COST
        self.on_added()

    def change(self, event: str, state: ApplicationState, time_ms: int) -> int:
        """Store a state change, and return the number of its report."""
        self.state = state
        self._add(Change(self.last + 1, time_ms, event, state), self._changes)
        if len(self._changes) > MAX_CHANGES:
            del self._reports[self._changes.popleft()]
        self.on_added()
        return self.last

    def after(self, cursor: int) -> Output | Change | None:
        """The first report after the cursor that is still stored, or None if there is none."""
        if cursor >= self.last:
            return None
        found = self._reports.get(cursor + 1)
        if found is None:
            firsts = (next((number for number in kept if number > cursor), None) for kept in self._kinds)
            found = self._reports[min(number for number in firsts if number is not None)]
        return found

    def acknowledge(self, number: int) -> None:
        """Note that the relay has everything up to this number. A number that was never assigned is ignored."""
        if self.acknowledged < number <= self.last:
            self.acknowledged = number

    @property
    def _kinds(self) -> tuple[deque[int], deque[int]]:
        return self._outputs, self._changes

    def _add(self, report: Output | Change, kind: deque[int]) -> None:
        self.last = report.number
        self._reports[report.number] = report
        kind.append(report.number)
