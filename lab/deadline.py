"""Waiting: one object holds the deadline, and whatever waits asks it for the remaining time.

A laboratory multiplies every deadline by one factor, which a backend that emulates a processor measures. It is at least
`PATIENCE`. Nothing in the laboratory sleeps for a fixed time in the hope that something has happened by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from lab.errors import LabTimeoutError

T = TypeVar("T")

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.05
"""Seconds between two checks: short at first, because most conditions hold within a few milliseconds."""

PATIENCE: Final = 3.0
"""The least factor of a deadline that only bounds a failure, so that its length costs nothing. On a shared machine,
others may take the processors for seconds."""


class Deadline:
    """A moment on the monotonic clock.

    Args:
        seconds: Seconds from now, on a machine that runs natively.
        scale: The factor: more than 1 where processors are emulated or shared.
        clock: Returns monotonic seconds.
        sleep: Sleeps for that many seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        scale: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds * scale
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + self.seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return self._clock() >= self._end

    def poll(self, look: Callable[[], T | None], what: str) -> T:
        """Check repeatedly until the result is true, and return it. The last check follows the deadline.

        Args:
            look: Returns something true when the condition holds.
            what: The condition, as the end of "waited 5.0 s for …".

        Raises:
            LabTimeoutError: The condition did not hold in time.
        """
        pause = FIRST_PAUSE
        while True:
            last = self.expired
            if seen := look():
                return seen
            if last:
                raise LabTimeoutError(f"waited {self.seconds:.1f} s for {what}", why="it did not happen")
            self._sleep(min(pause, self.remaining) or FIRST_PAUSE)
            pause = min(2 * pause, LONGEST_PAUSE)


def patiently(seconds: float) -> Deadline:
    """Return a deadline for this machine that only bounds a failure."""
    return Deadline(seconds, scale=PATIENCE)
