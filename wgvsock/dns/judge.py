"""The interface to the policy that decides which names an enclave may ask for, and learns their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wgvsock.addresses import IpAddress


class NameJudge(Protocol):
    """The part of a policy that the forwarder uses."""

    @property
    def longest(self) -> float:
        """Seconds that a pin lasts, and the longest time that a client may keep an answer."""
        ...

    def allows(self, name: str) -> bool:
        """Whether the enclave may ask for this name. If not, the forwarder answers REFUSED.

        Args:
            name: The name in lower case, without the trailing dot. It never contains a backslash.
        """
        ...

    async def pin(self, name: str, found: Sequence[tuple[IpAddress, float]]) -> frozenset[IpAddress]:
        """Let the enclave reach the addresses of an allowed name.

        The rule is in force when this method returns. The forwarder sends the answer only then.

        Args:
            name: The name that was asked for, as for `allows`, not an alias that the answer leads to.
            found: Each address with its TTL in seconds.

        Returns:
            The addresses that the answer must not contain. They lie in closed networks (DNS rebinding), or the table of
            pins has no room for them.
        """
        ...
