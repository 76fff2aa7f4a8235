"""Limits the handshake messages of each source, and detects whether the device as a whole gets too many."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from wgvsock.wireguard.constants import (
    LOAD_HOLD_TIME,
    RATE_LIMIT_BURST,
    RATE_LIMIT_PER_SECOND,
    RATE_LIMIT_SOURCES,
    STRANGER_BURST,
    STRANGER_PER_SECOND,
    STRANGERS_BURST,
    STRANGERS_PER_SECOND,
)

_SWEEP_INTERVAL: Final = 1.0


class RateLimiter:
    """A token bucket for each source, in a table of bounded size (whitepaper section 5.3).

    A bucket that is full again is no different from a new one, so it is removed when space is needed. If there is no
    space left, new sources are refused: a table full of busy sources means a flood.

    Args:
        sources: Largest number of buckets.
        per_second: Messages per second of one source.
        burst: Messages of one source at once.
    """

    __slots__ = ("_buckets", "_burst", "_per_second", "_refill_time", "_sources", "_swept_at")

    def __init__(
        self,
        sources: int = RATE_LIMIT_SOURCES,
        *,
        per_second: float = RATE_LIMIT_PER_SECOND,
        burst: int = RATE_LIMIT_BURST,
    ) -> None:
        self._sources = sources
        self._per_second = per_second
        self._burst = burst
        self._refill_time = burst / per_second
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        self._swept_at = float("-inf")

    def allow(self, source: Hashable, now: float) -> bool:
        """Take one token from the source's bucket. False if it is empty."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if not self._make_room(now):
                return False
            tokens = float(self._burst)
        else:
            tokens, then = bucket
            tokens = min(tokens + (now - then) * self._per_second, self._burst)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)

    def _make_room(self, now: float) -> bool:
        if len(self._buckets) >= self._sources and now - self._swept_at >= _SWEEP_INTERVAL:
            self._swept_at = now
            self._buckets = {
                source: bucket for source, bucket in self._buckets.items() if now - bucket[1] < self._refill_time
            }
        return len(self._buckets) < self._sources


class StrangerLimiter:
    """Limits streams whose peers have not proved themselves: each stream, and all of them together.

    A flood on such streams uses up their own budget and leaves the peers' alone. A peer that cannot yet be told from
    the flood gets the same chance as every new stream: one message, as long as the common budget lasts.
    """

    __slots__ = ("_all", "_each")

    def __init__(self) -> None:
        self._each = RateLimiter(per_second=STRANGER_PER_SECOND, burst=STRANGER_BURST)
        self._all = RateLimiter(1, per_second=STRANGERS_PER_SECOND, burst=STRANGERS_BURST)

    def allow(self, stream: Hashable, now: float) -> bool:
        """Take one token from the stream's bucket and one from the common bucket. False if either is empty."""
        return self._each.allow(stream, now) and self._all.allow(None, now)


class LoadMeter:
    """Detects "under load" by the rate of handshake messages: the core answers each at once and has no queue.

    Args:
        threshold: Largest number of messages per second that does not count as load.
    """

    __slots__ = ("_count", "_loaded_until", "_second_began", "_threshold")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._count = 0
        self._second_began = float("-inf")
        self._loaded_until = float("-inf")

    def handshake_message(self, now: float) -> bool:
        """Count a handshake message, and return whether the device is under load."""
        if now - self._second_began >= 1.0:
            self._second_began = now
            self._count = 0
        self._count += 1
        if self._count > self._threshold:
            self._loaded_until = now + LOAD_HOLD_TIME
        return now < self._loaded_until
