"""What the machine was like before a relay changed it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """The value of a switch of this machine before a relay changed it.

    The rules store these facts as comments. They live exactly as long as the switches do, in the network namespace, and
    survive the relay, its runtime directory and its container. Published ports are stored in the same way.

    Attributes:
        kind: Names the function that restores the switch, as in `wgvsock.runtime.journal.Undo`.
        target: The switch: an interface, or the path of a sysctl.
        value: Its former value, without spaces and quotation marks.
    """

    kind: str
    target: str
    value: str

    def __str__(self) -> str:
        """The comment's text."""
        return f"before {self.kind} {self.target} {self.value}"
