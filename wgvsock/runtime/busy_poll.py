"""Polls for a while after each packet before it sleeps, as busy polling does in the kernel (net.core.busy_poll).

A process that sleeps between packets finds the processor's caches cold when one arrives, and waits to be scheduled.
Half of an idle ping's time is that (docs/performance.md). Where a core has nothing else to do, it can keep looking.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable


class BusyPoll:
    """Waits on an epoll, without sleeping while the last packet is recent.

    Args:
        epoll: What to wait on.
        window: Seconds after a packet in which it does not sleep.
        quiet: A descriptor that does not report packets, and begins no window.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, epoll: select.epoll, window: float, *, quiet: int = -1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epoll = epoll
        self._window = window
        self._quiet = quiet
        self._clock = clock
        self._until = 0.0

    def __call__(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """See `select.epoll.poll`. A timeout ends the wait within the window as well."""
        ready = self._epoll.poll(0)
        end = self._until if timeout is None else min(self._until, self._clock() + timeout)
        while not ready and self._clock() < end:
            ready = self._epoll.poll(0)
        ready = ready or self._epoll.poll(timeout)
        if any(descriptor != self._quiet for descriptor, _ in ready):
            self._until = self._clock() + self._window
        return ready
