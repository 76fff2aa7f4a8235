"""Orders to a running relay and their results. A client asks for the result by the order's number."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from wgvsock.errors import WgvsockError

MAX_ORDERS: Final = 64
"""Orders to remember: as many as there can be connections that ask for one."""

Outcome: TypeAlias = "asyncio.Future[WgvsockError | None]"
"""The future result of one step of an order: an error, or None on success."""


class Waiters:
    """The futures that wait for one event."""

    def __init__(self) -> None:
        self._waiting: list[Outcome] = []

    def add(self) -> Outcome:
        """Add a future, in the running event loop, and return it."""
        outcome: Outcome = asyncio.get_running_loop().create_future()
        self._waiting.append(outcome)
        return outcome

    def take(self, others: Waiters) -> None:
        """Move all futures of `others` here."""
        self._waiting += others._waiting
        others._waiting.clear()

    def settle(self, error: WgvsockError | None) -> None:
        """Complete all futures with an error, or with None for success."""
        for outcome in self._waiting:
            if not outcome.done():
                outcome.set_result(error)
        self._waiting.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """One order.

    Attributes:
        number: Identifies the order.
        kind: ``reload`` or ``reattest``.
        time: When it was given, in UTC.
        outcomes: The result for each enclave.
        error: Why no part of it was carried out; None if it was carried out or still is.
        replacing: Enclaves that get another image. This takes minutes, so the order does not wait for it.
    """

    number: int
    kind: str
    time: datetime
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    error: WgvsockError | None = None
    replacing: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether every step has ended."""
        return all(outcome.done() for outcome in self.outcomes.values())

    def errors(self) -> dict[str, WgvsockError | None]:
        """The results so far, by enclave, without cancelled steps. None means success."""
        ended = {name: one for name, one in self.outcomes.items() if one.done() and not one.cancelled()}
        return {name: one.result() for name, one in ended.items()}

    @property
    def ok(self) -> bool | None:
        """Whether the order succeeded, or None while that is not yet known."""
        if self.error is not None or any(self.errors().values()):
            return False
        return True if self.done else None


class Orders:
    """The most recent orders to a relay."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._number = 0

    def add(
        self,
        kind: str,
        time: datetime,
        outcomes: Mapping[str, Outcome] | None = None,
        *,
        error: WgvsockError | None = None,
        replacing: tuple[str, ...] = (),
    ) -> Order:
        """Record an order, and forget the oldest if there are too many. The arguments are those of `Order`."""
        self._number += 1
        order = self._orders[self._number] = Order(self._number, kind, time, outcomes or {}, error, replacing)
        if len(self._orders) > MAX_ORDERS:
            del self._orders[next(iter(self._orders))]
        return order

    def find(self, number: str) -> Order | None:
        """Find an order by its number, given as untrusted text, or None if there is none."""
        return next((order for order in self._orders.values() if str(order.number) == number), None)

    def last(self, kind: str) -> Order | None:
        """The most recent order of a kind, or None."""
        return next((order for order in reversed(self._orders.values()) if order.kind == kind), None)


async def wait_for(order: Order, seconds: float) -> None:
    """Wait until an order is done, for at most so many seconds."""
    if pending := [outcome for outcome in order.outcomes.values() if not outcome.done()]:
        await asyncio.wait(pending, timeout=seconds)
