"""Finds the peers whose timers are due. A heap of all deadlines makes the cost depend on the due peers, not on all.

A deadline that has changed, or whose peer is gone, stays in the heap as a leftover. It is ignored when it passes, or
dropped when leftovers make up most of the heap.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

from wgvsock.wireguard.timers import NEVER

if TYPE_CHECKING:
    from wgvsock.wireguard.peer import Peer

_SMALL: Final = 64
"""Number of entries up to which leftovers do not matter."""


class Schedule:
    """Peers by the deadline that their timers announced last."""

    __slots__ = ("_heap", "_limit", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Peer]] = []
        self._order = count()  # breaks ties between equal deadlines, because peers have no order
        self._limit = _SMALL

    def __len__(self) -> int:
        return len(self._heap)

    def next_deadline(self) -> float | None:
        """The earliest deadline, which may be a leftover, or None."""
        return self._heap[0][0] if self._heap else None

    def add(self, deadline: float, peer: Peer) -> bool:
        """Schedule the peer's timers. True if this is now the earliest deadline."""
        if deadline == NEVER:
            return False
        if len(self._heap) >= self._limit:
            self._drop_leftovers()
        entry = (deadline, next(self._order), peer)
        heappush(self._heap, entry)
        return self._heap[0] is entry

    def take_due(self, now: float, most: int) -> list[Peer]:
        """Remove and return at most `most` peers whose deadline has passed, earliest first.

        The caller handles their timers, and adds the next deadline of each.
        """
        due: list[Peer] = []
        while self._heap and self._heap[0][0] <= now and len(due) < most:
            deadline, _, peer = heappop(self._heap)
            if _is_current(deadline, peer):
                peer.timers.known = -NEVER  # announce nothing until they have been handled
                due.append(peer)
        return due

    def _drop_leftovers(self) -> None:
        self._heap = [entry for entry in self._heap if _is_current(entry[0], entry[2])]
        heapify(self._heap)
        self._limit = max(_SMALL, 2 * len(self._heap))


def _is_current(deadline: float, peer: Peer) -> bool:
    return not peer.removed and peer.timers.known == deadline
