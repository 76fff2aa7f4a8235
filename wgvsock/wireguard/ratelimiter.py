"""How many handshake messages a source may send, and whether the device as a whole gets too many."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from wgvsock.wireguard.constants import LOAD_HOLD_TIME, RATE_LIMIT_BURST, RATE_LIMIT_PER_SECOND, RATE_LIMIT_SOURCES

_REFILL_TIME: Final = RATE_LIMIT_BURST / RATE_LIMIT_PER_SECOND
_SWEEP_INTERVAL: Final = 1.0


class RateLimiter:
    """A token bucket for each source address, in a table of bounded size (whitepaper section 5.3).

    A bucket that is full again is no different from a new one, so it is swept when room is needed. With no room left
    new sources are refused: a table full of busy sources means that the flood is on.
    """

    __slots__ = ("_buckets", "_sources", "_swept_at")

    def __init__(self, sources: int = RATE_LIMIT_SOURCES) -> None:
        self._sources = sources
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        self._swept_at = float("-inf")

    def allow(self, source: Hashable, now: float) -> bool:
        """Take one token of the source's bucket; False when it is empty."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if not self._make_room(now):
                return False
            tokens = float(RATE_LIMIT_BURST)
        else:
            tokens, then = bucket
            tokens = min(tokens + (now - then) * RATE_LIMIT_PER_SECOND, RATE_LIMIT_BURST)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)

    def _make_room(self, now: float) -> bool:
        if len(self._buckets) >= self._sources and now - self._swept_at >= _SWEEP_INTERVAL:
            self._swept_at = now
            self._buckets = {
                source: bucket for source, bucket in self._buckets.items() if now - bucket[1] < _REFILL_TIME
            }
        return len(self._buckets) < self._sources


class LoadMeter:
    """Tells "under load" from the rate of handshake messages, as the core answers each at once and has no queue.

    Args:
        threshold: Messages in a second that are still no load.
    """

    __slots__ = ("_count", "_loaded_until", "_second_began", "_threshold")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._count = 0
        self._second_began = float("-inf")
        self._loaded_until = float("-inf")

    def handshake_message(self, now: float) -> bool:
        """Count a handshake message; True when the device is under load."""
        if now - self._second_began >= 1.0:
            self._second_began = now
            self._count = 0
        self._count += 1
        if self._count > self._threshold:
            self._loaded_until = now + LOAD_HOLD_TIME
        return now < self._loaded_until
