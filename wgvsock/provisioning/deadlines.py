"""How long each part of provisioning may take, and how many may ask."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

LISTEN_BACKLOG: Final = 4
"""Connections that the kernel keeps for us: one relay, its retry, and two strangers."""

CONNECTIONS_PER_SECOND: Final = 1.0
CONNECTION_BURST: Final = 5
"""A relay that restarts in a loop backs off from 0.5 s, so it stays below this; a flood does not."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds of monotonic time. The lab's emulated guests scale them.

    Attributes:
        exchange: From connect or accept to the end of the exchange.
        frame: For one frame to be complete, from when the other side could begin it (see the page on the protocol).
        secure_module: For the Nitro Security Module to answer.
        rollback: For the first authenticated WireGuard packet after a configuration was applied, before it is taken
            back.
        silence: Without an authenticated packet, before the same WireGuard key may ask again unsigned.
        handshake: For the relay's WireGuard handshake after a successful exchange, before it removes the peer.
    """

    exchange: float = 10.0
    frame: float = 3.0
    secure_module: float = 5.0
    rollback: float = 30.0
    silence: float = 180.0
    handshake: float = 10.0

    def scaled(self, factor: float) -> Deadlines:
        """All deadlines times `factor`, for machines that are slower by as much."""
        return Deadlines(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


DEFAULT_DEADLINES: Final = Deadlines()


class TokenBucket:
    """Admits a number of events a second, and bursts.

    Args:
        rate: Tokens that come back a second.
        burst: Tokens that it holds when full, and at the start.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated = float("-inf")

    def take(self, now: float) -> bool:
        """Take one token; False when none is left.

        Args:
            now: Monotonic time in seconds.
        """
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
