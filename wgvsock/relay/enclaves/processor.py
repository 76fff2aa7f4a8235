"""An enclave's processor use, from two of its agent's reports.

The enclave is the only one that knows these numbers, and it may lie. They are shown with its name and decide nothing,
and a rate is never more than its processors can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wgvsock.system.processor import ProcessorTimes

MIN_INTERVAL: Final = 1000
"""Milliseconds between the two reports of a rate. The kernel counts in steps of 10 ms, so the error is 1 % at most."""


@dataclass(frozen=True, slots=True)
class ProcessorSnapshot:
    """An enclave's processor use at one moment.

    Attributes:
        times: The last report.
        percent: Use of the whole enclave between the last two reports, in percent of one CPU. None: unknown.
        agent_percent: The agent's part of it.
    """

    times: ProcessorTimes
    percent: float | None
    agent_percent: float | None


class ProcessorRecord:
    """Keeps the last report and the rate."""

    def __init__(self) -> None:
        self._snapshot: ProcessorSnapshot | None = None

    def clear(self) -> None:
        """Forget everything, because there is another agent."""
        self._snapshot = None

    def take(self, times: ProcessorTimes | None) -> None:
        """Take what a report says, which is None for an agent of an older version."""
        if times is None:
            return
        before = None if self._snapshot is None else self._snapshot.times
        if before is None or times.clock_ms < before.clock_ms:
            self._snapshot = ProcessorSnapshot(times, None, None)
        elif (passed := times.clock_ms - before.clock_ms) >= MIN_INTERVAL:
            most = 100.0 * times.processors
            percent = min(most, max(0.0, 100 * (times.busy_ms - before.busy_ms) / passed))
            agent = min(most, max(0.0, 100 * (times.own_ms - before.own_ms) / passed))
            self._snapshot = ProcessorSnapshot(times, percent, agent)

    def snapshot(self) -> ProcessorSnapshot | None:
        """The use at this moment, or None before the first report."""
        return self._snapshot
