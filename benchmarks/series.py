"""A growing number, and its cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

FLAT: Final = 0.15
"""The exponent up to which growth counts as flat: a factor of 4 from 1 to 10,000, which cache sizes explain."""

_REPETITIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What grows, and the cost that is measured.
        unit: Unit of the cost.
        points: Pairs of number and cost.
    """

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def exponent(self) -> float:
        """The exponent of the cost's growth: 0 is flat, 1 is linear (least squares on logarithms)."""
        logs = [(math.log(number), math.log(cost)) for number, cost in self.points if cost > 0]
        numbers, costs = (list(axis) for axis in zip(*logs, strict=True))
        return statistics.linear_regression(numbers, costs).slope

    @property
    def slope(self) -> str:
        """Describe the growth in words."""
        exponent = self.exponent
        if exponent <= FLAT:
            return "falls" if exponent < -FLAT else "flat"
        return "linear" if abs(exponent - 1) <= FLAT else f"with the power {exponent:.2f} of the number"


def fastest(step: Callable[[], object], calls: int) -> float:
    """Return the processor time of one call in microseconds. One `step` makes `calls` of them."""
    times = []
    for _ in range(_REPETITIONS):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return min(times) / calls * 1e6


def series(title: str, numbers: Iterable[int], cost: Callable[[int], float]) -> Series:
    """Measure one line of a chart.

    Args:
        title: Its name, a comma, and the unit of the cost.
        numbers: The numbers to measure.
        cost: Measures the cost of one number.
    """
    name, _, unit = title.rpartition(", ")
    return Series(name, unit, tuple((number, cost(number)) for number in numbers))
