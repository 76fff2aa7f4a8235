"""Two transports that carry datagrams to each other in memory, in order, through the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from wgvsock.addresses import UnixAddress
from wgvsock.transports.base import DatagramsReceived, Link

_ROOM = 66_000
_QUEUE_LIMIT = 64


class MemoryLink:
    """The one `Link` of a `MemoryTransport`.

    Attributes:
        writable: Changed by `block` and `unblock`.
        authenticated: Whether the tunnel marked it.
        closed: The reasons for which it was closed.
    """

    def __init__(self, address: UnixAddress, transport: MemoryTransport) -> None:
        self.address = address
        self.writable = True
        self.authenticated = False
        self.closed: list[str] = []
        self._transport = transport
        self._room = memoryview(bytearray(_ROOM))
        self._committed: list[bytes] = []

    def reserve(self, size: int) -> memoryview | None:
        """See `Link.reserve`."""
        return self._room[:size] if len(self._committed) < _QUEUE_LIMIT else None

    def commit(self, length: int) -> None:
        """See `Link.commit`."""
        if length:
            self._committed.append(bytes(self._room[:length]))

    def flush(self) -> None:
        """See `Link.flush`."""
        if self.writable and self._committed:
            datagrams, self._committed = self._committed, []
            self._transport.carry(datagrams)

    def mark_authenticated(self) -> None:
        """See `Link.mark_authenticated`."""
        self.authenticated = True

    def close(self, why: str) -> None:
        """See `Link.close`."""
        self.closed.append(why)

    def block(self) -> None:
        """Act as if the kernel accepted no more data."""
        self.writable = False

    def unblock(self) -> None:
        """Act as if the kernel accepted data again."""
        self.writable = True
        self.flush()
        self._transport.on_writable(self)


class MemoryTransport:
    """Satisfies `wgvsock.transports.base.Transport`. Use `pair` to make two.

    Attributes:
        link: The link to the other transport.
        carried: Every datagram that was sent.
        retained: The endpoints that the tunnel last asked to retain.
        severed: Whether datagrams are lost.
    """

    def __init__(self, name: str) -> None:
        self.link = MemoryLink(UnixAddress(name), self)
        self.carried: list[bytes] = []
        self.retained: Collection[object] = ()
        self.severed = False
        self.other: MemoryTransport
        self.on_writable: Callable[[Link], None]
        self.on_connected: Callable[[Link], None]
        self._on_datagrams: DatagramsReceived | None = None

    @classmethod
    def pair(cls) -> tuple[MemoryTransport, MemoryTransport]:
        """Two connected transports. The endpoint of each is its `link` or the link's address."""
        left, right = cls("right"), cls("left")  # a link has the name of its other end
        left.other, right.other = right, left
        return left, right

    def link_for(self, endpoint: object) -> MemoryLink | None:
        """See `Transport.link_for`."""
        return self.link if endpoint is self.link or endpoint == self.link.address else None

    def retain(self, endpoints: Collection[object]) -> None:
        """See `Transport.retain`."""
        self.retained = endpoints

    async def start(
        self,
        on_datagrams: DatagramsReceived,
        on_writable: Callable[[Link], None],
        on_connected: Callable[[Link], None],
    ) -> None:
        """See `Transport.start`."""
        self._on_datagrams, self.on_writable, self.on_connected = on_datagrams, on_writable, on_connected

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._on_datagrams = None

    def carry(self, datagrams: list[bytes]) -> None:
        """Carry datagrams to the other end in the loop's next turn."""
        self.carried += datagrams
        if not self.severed:
            asyncio.get_running_loop().call_soon(self.other.arrive, datagrams)

    def arrive(self, datagrams: list[bytes]) -> None:
        """Deliver datagrams that have arrived."""
        if self._on_datagrams is not None:
            self._on_datagrams(self.link, [memoryview(datagram) for datagram in datagrams])
