"""One remote of the UDP transport, and the source address of answers to it.

Answers leave from the address that the datagram was sent to (IP_PKTINFO in ip(7), IPV6_PKTINFO in RFC 3542). A machine
may have several addresses, and a client's firewall, or a NAT in between, knows only one of them. The source address is
part of the link. As in the Linux implementation, it is forgotten when the kernel refuses it, when the route to the
remote changes to another interface, when handshakes get no answer, and when the endpoint is set by hand.
"""

from __future__ import annotations

import socket
from typing import Protocol

from wgvsock.addresses import Port, UdpAddress
from wgvsock.transports.udp_sockets import PKTINFO, PKTINFO6, Ancillary, SocketAddress


class Sender(Protocol):
    """The part of its transport that a link needs."""

    routes_state: int

    @property
    def blocked(self) -> bool:
        """Whether the kernel accepts no more at present."""
        ...

    def link_to(self, sockaddr: SocketAddress, arrival: Ancillary | None = None) -> UdpLink:
        """The link to a remote that sends from the address this arrival came to, or from the kernel's choice."""
        ...

    def forget(self, sockaddr: SocketAddress, arrival: Ancillary | None) -> None:
        """Forget a link, so that the next such arrival creates a new one."""
        ...

    def reserve(self, size: int) -> memoryview | None:
        """Reserve space for a datagram.

        Returns:
            `size` writable bytes, or None if there is no space.
        """
        ...

    def commit(self, link: UdpLink, length: int) -> None:
        """Queue the datagram of this length in the reserved space for that link."""
        ...

    def flush(self) -> None:
        """Send queued datagrams."""
        ...


class Routes(Protocol):
    """Watches the routes to remotes: `wgvsock.system.routes.RouteWatch`."""

    def fileno(self) -> int:
        """The descriptor, readable when something has changed."""
        ...

    def drain(self) -> None:
        """Discard pending notifications."""
        ...

    def interface_to(self, remote: str, source: bytes, mark: int) -> int | None:
        """Find the interface through which a packet would leave now.

        Args:
            remote: The destination, an IPv4 or IPv6 address.
            source: The packet's source address, 4 or 16 bytes.
            mark: The packet's mark, 0 for none.

        Returns:
            The interface's index, or None if there is no route.
        """
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


class UdpLink:
    """One remote, and the endpoint that the WireGuard core stores for it.

    Args:
        transport: The transport that sends its datagrams.
        sockaddr: The remote.
        arrival: The ancillary data of a datagram from the remote, which contains the address it was sent to. None lets
            the kernel choose the source address.

    Attributes:
        source: The address to send from, 4 or 16 bytes, or None to let the kernel choose.
        interface: Index of the interface on which the remote's datagram arrived.
        routes_known: The transport's `routes_state` when the source was last checked.
    """

    __slots__ = ("_arrival", "_transport", "control", "interface", "routes_known", "sockaddr", "source")

    def __init__(self, transport: Sender, sockaddr: SocketAddress, arrival: Ancillary | None = None) -> None:
        self._transport = transport
        self.sockaddr = sockaddr
        self._arrival = arrival
        self.source: bytes | None = None
        self.control: tuple[Ancillary, ...] = ()
        self.interface = 0
        self.routes_known = transport.routes_state
        if arrival is not None:
            level, kind, value = arrival
            # Do not fix the interface: the packet is routed by its addresses, so that it follows route changes.
            if level == socket.IPPROTO_IP:
                self.interface, self.source, _ = PKTINFO.unpack(value)
                information = PKTINFO.pack(0, self.source, bytes(4))
            else:
                self.source, self.interface = PKTINFO6.unpack(value)
                information = PKTINFO6.pack(self.source, 0)
            self.control = ((level, kind, information),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UdpLink) and other.sockaddr == self.sockaddr and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.sockaddr)

    def __repr__(self) -> str:
        return f"<UdpLink {self.address}>"

    @property
    def address(self) -> UdpAddress:
        """See `Link.address`. A link-local remote keeps its interface's index (``fe80::1%3``)."""
        host, port, *rest = self.sockaddr
        return UdpAddress(f"{host}%{rest[1]}" if rest and rest[1] else host, Port(port))

    def without_source(self) -> UdpLink:
        """A link to the same remote that lets the kernel choose the source address."""
        return self if self.source is None else self._transport.link_to(self.sockaddr)

    def forget_source(self) -> None:
        """Let the kernel choose the source address. The remote's next datagram creates a new link with its own."""
        self.source, self.control = None, ()
        self._transport.forget(self.sockaddr, self._arrival)

    def check_source(self, routes: Routes | None, mark: int) -> None:
        """Keep the source address after a route change only if the route still uses the arrival's interface."""
        self.routes_known = self._transport.routes_state
        host, _, *rest = self.sockaddr
        if self.source is None or routes is None or (rest and rest[1]):
            return  # a link-local remote is on its interface, whatever the routes are
        if routes.interface_to(host, self.source, mark) != self.interface:
            self.forget_source()

    @property
    def writable(self) -> bool:
        """See `Link.writable`. All links share the sockets."""
        return not self._transport.blocked

    @property
    def authenticated(self) -> bool:
        """See `Link.authenticated`. Always True, because UDP has no connections."""
        return True

    def reserve(self, size: int) -> memoryview | None:
        """See `Link.reserve`."""
        return self._transport.reserve(size)

    def commit(self, length: int) -> None:
        """See `Link.commit`."""
        if length:
            self._transport.commit(self, length)

    def flush(self) -> None:
        """See `Link.flush`."""
        self._transport.flush()

    def mark_authenticated(self) -> None:
        """See `Link.mark_authenticated`."""

    def close(self, why: str) -> None:
        """See `Link.close`."""
