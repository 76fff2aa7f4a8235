"""A running capture of any kind, as a backend provides it for each of its interfaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from lab.deadline import Deadline
from lab.guest.packets import CapturedPacket
from lab.topology import Point


class PacketCapture(ABC):
    """A running capture at one interface."""

    point: Point
    clock_error: float = 0.0
    """Seconds by which its times may deviate from this machine's clock."""

    @abstractmethod
    def packets(self) -> list[CapturedPacket]:
        """Return what has passed since the start, oldest first. The list only grows."""

    @abstractmethod
    def close(self) -> None:
        """Stop. The captured packets remain readable. Idempotent."""

    def wait_for(self, wanted: Callable[[CapturedPacket], bool], deadline: Deadline, what: str) -> CapturedPacket:
        """Return the first matching packet.

        Raises:
            LabTimeoutError: None arrived.
        """
        seen = 0

        def look() -> CapturedPacket | None:
            nonlocal seen
            packets = self.packets()
            while seen < len(packets):
                seen += 1
                if wanted(packets[seen - 1]):
                    return packets[seen - 1]
            return None

        return deadline.poll(look, what)
