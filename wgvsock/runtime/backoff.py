"""How long to wait before a retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

INITIAL_BACKOFF: Final = 0.5
MAXIMUM_BACKOFF: Final = 30.0
"""Seconds between two attempts. A restarted enclave is soon connected again, and a dead one costs next to nothing."""

BACKOFF_JITTER: Final = 0.25
"""Each delay is extended by up to this fraction of it, so that the relays of one node do not dial in step."""


class Backoff:
    """Delays that double, each with some jitter.

    Args:
        random: Uniform random numbers from 0 to 1.
        first: The shortest delay, in seconds, without jitter.
        longest: The longest delay, in seconds, without jitter.
    """

    def __init__(
        self, random: Callable[[], float], *, first: float = INITIAL_BACKOFF, longest: float = MAXIMUM_BACKOFF
    ) -> None:
        self._random = random
        self._first = first
        self._longest = longest
        self._next = first

    def next_delay(self, limit: float | None = None) -> float:
        """Seconds to wait before the next attempt. Only the jitter can exceed `limit`."""
        delay = self._next if limit is None else min(self._next, limit)
        self._next = min(delay * 2, self._longest)
        return delay * (1 + BACKOFF_JITTER * self._random())

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._next = self._first
