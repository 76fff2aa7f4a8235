"""The seam between the tunnel and whatever carries its datagrams.

A `Transport` is the counterpart of wireguard-go's ``conn.Bind``: it listens, it dials, and it hands out `Link` objects.
A `Link` is one way to one remote, and is also the opaque endpoint that the WireGuard core stores for a peer: the
core compares and stores endpoints, the tunnel sends through them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from wgvsock.addresses import Address

DatagramsReceived = Callable[["Link", "list[memoryview]"], None]
"""Called with a link and the whole datagrams of one read; the views are valid only during the call."""


class Link(Protocol):
    """One way to one remote. Hashable by identity or by remote address, so that it can serve as an endpoint.

    Writing is two-step so that a datagram is sealed straight into the outgoing buffer, with no copy:
    ``view = link.reserve(n)``, fill at most n bytes of it, ``link.commit(used)``; ``link.flush()`` once a batch.
    """

    def __hash__(self) -> int: ...

    @property
    def address(self) -> Address:
        """Where the remote is, for people and for ``wg show``."""
        ...

    @property
    def writable(self) -> bool:
        """False while the kernel takes no more, or while there is no stream: stop reading the TUN."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether an authenticated message has come over it since it was connected; see `mark_authenticated`."""
        ...

    def reserve(self, size: int) -> memoryview | None:
        """Room for one datagram of at most `size` bytes, behind the link's own frame header; None: no room, drop it."""
        ...

    def commit(self, length: int) -> None:
        """The datagram in the last reserved room is `length` bytes long; 0 takes the reservation back."""
        ...

    def flush(self) -> None:
        """Hand everything committed to the kernel, as far as it takes it; the rest follows when it is writable."""
        ...

    def mark_authenticated(self) -> None:
        """The tunnel has received an authenticated message over it.

        Only this resets the back-off of a dialled link, and lets an accepted one stay.
        """
        ...

    def close(self, why: str) -> None:
        """Give up the present stream, because of `why`; a dialled link connects again. UDP has nothing to close."""
        ...


class Transport(Protocol):
    """Makes links and reports what they receive."""

    def link_for(self, endpoint: object) -> Link | None:
        """The link that reaches an endpoint now.

        An endpoint is a `Link` that once delivered a datagram, or an `Address` from a configuration; a stream transport
        starts to dial an address that has no live link. None: nothing to send through yet; the datagram is lost, as it
        would be on a network, and WireGuard's timers send another.
        """
        ...

    def retain(self, endpoints: Collection[object]) -> None:
        """Let go of every remote that is dialled and is not among these endpoints any more."""
        ...

    async def start(
        self,
        on_datagrams: DatagramsReceived,
        on_writable: Callable[[Link], None],
        on_connected: Callable[[Link], None],
    ) -> None:
        """Begin to listen and to report; the callables run in the event loop.

        Args:
            on_datagrams: Whole datagrams arrived.
            on_writable: A link that was not writable is so again.
            on_connected: A link has a new stream. The remote learns which of its streams to answer on only from an
                authenticated message. UDP never calls it.

        Raises:
            TransportError: The listening address cannot be bound.
        """
        ...

    async def aclose(self) -> None:
        """Close every socket; idempotent."""
        ...
