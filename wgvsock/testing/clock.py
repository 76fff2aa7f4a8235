"""Time and entropy under the test's control, so that nothing sleeps and every run is the same."""

from __future__ import annotations

import hashlib
from typing import Final

EPOCH: Final = 1_800_000_000 * 10**9
"""Where the wall clock starts: 2027-01-15 08:00 UTC, in nanoseconds."""


class ManualClock:
    """Monotonic and wall time that move only by `advance`."""

    def __init__(self, now: float = 1000.0, wall: int = EPOCH) -> None:
        self.now = now
        self._wall_offset = wall - round(now * 10**9)

    def __call__(self) -> float:
        """Monotonic seconds, for code that takes a callable as its clock."""
        return self.now

    def wall_clock(self) -> int:
        """Unix time in nanoseconds."""
        return self._wall_offset + round(self.now * 10**9)

    def advance(self, seconds: float) -> float:
        """Let time pass.

        Args:
            seconds: How much, 0 or more.

        Returns:
            The new monotonic time in seconds.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self.now += seconds
        return self.now

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock forward or back by `seconds`, as NTP does. Monotonic time stays the same."""
        self._wall_offset += round(seconds * 10**9)


class SeededRandom:
    """Random bytes that are the same in every run. Never use them in production."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def __call__(self, size: int) -> bytes:
        """The next `size` bytes."""
        self._count += 1
        return hashlib.shake_128(self._seed + self._count.to_bytes(8, "big")).digest(size)
