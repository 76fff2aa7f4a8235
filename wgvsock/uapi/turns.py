"""Splits long work into short turns, between which the event loop carries the tunnel's packets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

TURN: Final = 0.002
"""Seconds of work at a time: a packet waits for it no longer than for a slow system timer."""


class Turns:
    """Makes a coroutine yield after each turn.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = clock() + TURN

    async def pause(self) -> None:
        """Yield to other tasks if the turn is over. Call it after every piece of work."""
        if self._clock() >= self._until:
            await asyncio.sleep(0)
            self._until = self._clock() + TURN
