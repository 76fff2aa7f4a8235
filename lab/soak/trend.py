"""Whether a series of samples rises: a robust slope, and how much of it is noise. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

WARM_UP: Final = 0.25
"""Share of the samples that is ignored, because imports, caches and connections come first."""

FEWEST: Final = 12
"""Samples that have to remain: with fewer, a slope is chance. Logs, the rarest, have that many after 3 minutes."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The total over a run up to which a rise does not count as growth.

    Attributes:
        share: Relative to the median.
        slack: In the samples' unit, for values near zero.
    """

    share: float
    slack: float


@dataclass(frozen=True, slots=True)
class Trend:
    """One series.

    Attributes:
        name: What was sampled.
        unit: Unit of the samples.
        samples: Pairs of seconds since the start and value.
        limit: How much it may rise.
    """

    name: str
    unit: str
    samples: Sequence[tuple[float, float]]
    limit: Limit

    @property
    def counted(self) -> Sequence[tuple[float, float]]:
        """The samples after the warm-up."""
        return self.samples[int(len(self.samples) * WARM_UP) :]

    @property
    def slope(self) -> float | None:
        """Units per second, or None with too few samples.

        The median of the slopes between all pairs (Theil and Sen), which a burst of packets at either end does not
        distort.
        """
        counted = self.counted
        if len(counted) < FEWEST:
            return None
        return median((late - early) / (end - begin) for (begin, early), (end, late) in combinations(counted, 2))

    @property
    def rise(self) -> float | None:
        """The rise over the time that counts, in units, according to the slope."""
        slope, counted = self.slope, self.counted
        return None if slope is None else slope * (counted[-1][0] - counted[0][0])

    @property
    def allowed(self) -> float:
        """Units by which it may rise."""
        return max(self.limit.slack, self.limit.share * median(value for _, value in self.counted))

    @property
    def grows(self) -> bool:
        """Whether it rises by more than allowed. It may fall."""
        return self.rise is not None and self.rise > self.allowed

    def __str__(self) -> str:
        if self.slope is None or self.rise is None:
            return f"{self.name}: too few samples to tell"
        middle = median(value for _, value in self.counted)
        return (
            f"{self.name}: {middle:g} {self.unit}, {self.rise:+.3g} in {self.counted[-1][0] - self.counted[0][0]:.0f} s"
            f" (allowed {self.allowed:.3g})"
        )
