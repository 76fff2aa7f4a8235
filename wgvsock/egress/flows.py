"""What the gate remembers about flows, in two kinds of bounded tables.

Both are ordered dictionaries. A plain dictionary scans past every deleted entry to find its oldest key. In a flood of
new flows that scan costs more than anything else does for a packet: 7 µs instead of 0.3 µs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_FLOWS: Final = 16_384
"""For TCP and for UDP: a quarter of the connection tracking table of a small machine, in about 4 MB."""

_CHANCES: Final = 16
"""Flows examined before the oldest is evicted: a bound on the work that a stranger's packet causes."""


@dataclass(slots=True)
class _Flow:
    used_at: float
    kept_at: float
    """When the flow was moved to the end of the table."""


class IncomingFlows:
    """Flows from outside that the enclave may answer.

    A full table evicts the oldest flow that has not been used since it was added or last spared. Strangers who keep
    changing their port thus evict each other, not the clients being served. An evicted flow is added again with its
    next packet.

    Args:
        lifetime: Seconds after the last packet, in either direction, during which an answer may follow.
        limit: Maximum number of flows.
    """

    def __init__(self, lifetime: float, limit: int = MAX_FLOWS) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._flows: OrderedDict[bytes, _Flow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def refresh(self, answer: bytes, now: float) -> bool:
        """Record a packet from outside.

        Args:
            answer: The flow as a packet that answers it has it; see `Reading.flow`.
            now: The time, in seconds.

        Returns:
            Whether the flow is known.
        """
        flow = self._flows.get(answer)
        if flow is None:
            return False
        flow.used_at = now
        return True

    def add(self, answer: bytes, now: float) -> None:
        """Add a flow that is not known yet. The arguments are those of `refresh`."""
        if len(self._flows) >= self._limit:
            self._forget_one()
        self._flows[answer] = _Flow(now, now)

    def answers(self, flow: bytes, now: float) -> bool:
        """Whether a packet from the enclave answers one of these flows. If so, the flow's lifetime starts again."""
        known = self._flows.get(flow)
        if known is None or now - known.used_at > self._lifetime:
            return False
        known.used_at = now
        return True

    def clear(self) -> None:
        """Forget every flow."""
        self._flows.clear()

    def _forget_one(self) -> None:
        for _ in range(_CHANCES):
            answer, flow = self._flows.popitem(last=False)
            if flow.used_at == flow.kept_at:
                return
            flow.kept_at = flow.used_at
            self._flows[answer] = flow
        self._flows.popitem(last=False)


class Recent:
    """The keys that were added most recently.

    Args:
        limit: Maximum number of keys.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.keys: OrderedDict[bytes, None] = OrderedDict()
        """Read-only for callers. The hot path looks a key up here without a method call."""

    def add(self, key: bytes) -> None:
        """Add a key. A full table drops its oldest key first."""
        if len(self.keys) >= self._limit and key not in self.keys:
            self.keys.popitem(last=False)
        self.keys[key] = None

    def clear(self) -> None:
        """Forget every key."""
        self.keys.clear()
