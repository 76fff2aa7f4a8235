"""Decides whether and when to restart an application that has ended. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from wgvsock.runtime.backoff import Backoff

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds before a restart, doubled each time: an application that dies at once would keep the enclave busy."""

STABLE: Final = 10.0
"""Seconds after which a process counts as having worked. The next pause is then the first one again."""


class Restarts:
    """The restart policy of one application.

    Args:
        policy: The key ``restart`` of ``[application]``.
        random: Uniform random numbers from 0 to 1.
    """

    def __init__(self, policy: Literal["never", "on-failure", "always"], random: Callable[[], float]) -> None:
        self._policy = policy
        self._backoff = Backoff(random, first=FIRST_PAUSE, longest=LONGEST_PAUSE)

    def pause(self, exit_status: int, lived: float) -> float | None:
        """Seconds until the next start, or None if there is none.

        Args:
            exit_status: The process's exit status. 0 is success.
            lived: Seconds that the process ran.
        """
        if self._policy == "never" or (self._policy == "on-failure" and exit_status == 0):
            return None
        if lived >= STABLE:
            self._backoff.reset()
        return self._backoff.next_delay()
