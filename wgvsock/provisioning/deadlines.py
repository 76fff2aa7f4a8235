"""Limits of provisioning: how long each part may take, and how many connections there may be."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

MAX_WAITING: Final = 256
"""Exchanges that may wait for their REQUEST at the same time. Each has a descriptor, about 4 KiB, and up to 8 KiB of an
incomplete REQUEST, which makes 3 MiB in total. A new connection evicts the oldest one, so the limit also determines how
much time a relay has for its REQUEST: at 1,000 connections a second, a quarter of a second."""

LISTEN_BACKLOG: Final = 128
"""Connections that the kernel queues until we accept them. While the port's allowance is used up, new connections wait
there instead of being refused."""

STRANGERS_SHARE: Final = 0.25
STRANGERS_BURST: Final = 0.1
"""The share of one processor, and the seconds of its time in one burst, for connections that have not proved to be from
the relay. A processor of 2023 handles about 1,500 such connections a second, or 600 with a forged REQUEST."""

RETIREMENT: Final = 5.0
"""Seconds for which both sides still accept packets that a replaced peer sent before the change."""

REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports on exchanges that failed before the relay had proved itself."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits in monotonic seconds. The lab's emulated guests scale them.

    Attributes:
        exchange: From connect or accept to the end of the exchange.
        frame: From when the other side can begin a frame until the frame is complete (see
            docs/protocol/provisioning.md).
        secure_module: Until the Nitro Security Module has answered.
        rollback: From applying a configuration to the first authenticated WireGuard packet. After that, the
            configuration is rolled back.
        silence: Without an authenticated packet and without a stream. After that, another relay may take over.
        handshake: From a successful exchange to the WireGuard handshake. After that, the relay removes the peer.
    """

    exchange: float = 10.0
    frame: float = 3.0
    secure_module: float = 5.0
    rollback: float = 30.0
    silence: float = 180.0
    handshake: float = 10.0

    def scaled(self, factor: float) -> Deadlines:
        """All limits times `factor`, for machines that are slower by this factor."""
        return Deadlines(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


DEFAULT_DEADLINES: Final = Deadlines()


class Allowance:
    """A share of one processor's time for work that anyone can cause.

    The cost of work is known only afterwards. So the balance may fall below zero, and then needs time to recover.

    Args:
        share: Share of one processor, 0 to 1.
        burst: Seconds of work that can be saved up.
    """

    __slots__ = ("_balance", "_burst", "_share", "_updated")

    def __init__(self, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst
        self._balance = burst
        self._updated = float("-inf")

    def spend(self, seconds: float, now: float) -> float:
        """Charge for work that has been done.

        Args:
            seconds: Its cost in seconds of processor time.
            now: Monotonic time in seconds.

        Returns:
            Seconds to wait before more of it may be done.
        """
        earned = max(0.0, now - self._updated) * self._share
        self._balance = min(self._burst, self._balance + earned) - seconds
        self._updated = now
        return max(0.0, -self._balance / self._share)
