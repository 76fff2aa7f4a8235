"""The interface between the tunnel and the transport of its datagrams.

A `Transport` is the counterpart of wireguard-go's ``conn.Bind``: it listens, dials, and hands out `Link` objects. A
`Link` leads to one remote. It is also the opaque endpoint that the WireGuard core stores for a peer: the core compares
and stores endpoints, and the tunnel sends through them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from wgvsock.addresses import Address

DatagramsReceived = Callable[["Link", "list[memoryview]"], None]
"""Called with a link and the complete datagrams of one read. The views are valid only during the call."""


class Link(Protocol):
    """A link to one remote. Hashable by identity or by remote address, so that it can serve as an endpoint.

    Writing takes two steps, so that a datagram is sealed straight into the outgoing buffer without a copy: take
    ``view = link.reserve(n)``, fill at most n bytes of it, and call ``link.commit(used)``. Call ``link.flush()`` once
    per batch.
    """

    def __hash__(self) -> int: ...

    @property
    def address(self) -> Address:
        """The remote's address, for people and for ``wg show``."""
        ...

    @property
    def writable(self) -> bool:
        """False while the kernel accepts no more or there is no stream. The tunnel then stops reading the TUN."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether an authenticated message has arrived since it was connected. See `mark_authenticated`."""
        ...

    def reserve(self, size: int) -> memoryview | None:
        """Reserve space for one datagram of at most `size` bytes, after the link's own frame header.

        Returns:
            `size` writable bytes, or None if the buffer is full: drop the datagram.
        """
        ...

    def commit(self, length: int) -> None:
        """Commit the datagram in the space last reserved. It has `length` bytes. 0 cancels the reservation."""
        ...

    def flush(self) -> None:
        """Hand everything committed to the kernel, as far as it accepts it. The rest follows when it is writable."""
        ...

    def mark_authenticated(self) -> None:
        """Note that the tunnel has received an authenticated message over it.

        Only this resets the back-off of a dialled link, and lets an accepted one stay.
        """
        ...

    def close(self, why: str) -> None:
        """Close the present stream for the reason `why`. A dialled link reconnects. UDP has nothing to close."""
        ...


class Transport(Protocol):
    """Makes links and reports what they receive."""

    def link_for(self, endpoint: object) -> Link | None:
        """Find the link that reaches an endpoint now.

        An endpoint is a `Link` that once delivered a datagram, or an `Address` from a configuration. A stream transport
        starts to dial an address that has no live link.

        Returns:
            The link, or None if there is nothing to send through yet. The datagram is then lost, as it would be on a
            network, and WireGuard's timers send another.
        """
        ...

    def retain(self, endpoints: Collection[object]) -> None:
        """Stop dialling every remote that is not among these endpoints."""
        ...

    async def start(
        self,
        on_datagrams: DatagramsReceived,
        on_writable: Callable[[Link], None],
        on_connected: Callable[[Link], None],
    ) -> None:
        """Start to listen and to report. The callbacks run in the event loop.

        Args:
            on_datagrams: Complete datagrams have arrived.
            on_writable: A link is writable again.
            on_connected: A link has a new stream. Only an authenticated message tells the remote which of its streams
                to answer on. UDP never calls it.

        Raises:
            TransportError: The listening address cannot be bound.
        """
        ...

    async def aclose(self) -> None:
        """Close every socket. Idempotent."""
        ...
