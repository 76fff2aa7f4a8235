"""The datagram transport: standard WireGuard over UDP, on IPv4 and IPv6.

There is one socket per address family, on the same port, as in wireguard-go's ``StdNetBind``. If the kernel has them,
generic segmentation and receive offload (UDP_SEGMENT since Linux 4.18, UDP_GRO since 5.0, udp(7)) carry a run of
datagrams of one size, for one remote, in one call.

A remote is a `UdpLink`. Two links are equal if they have the same remote and source address. A peer roams when an
authenticated datagram comes from elsewhere (`wgvsock.transports.udp_link`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from typing import Final

from wgvsock.addresses import UdpAddress
from wgvsock.errors import TransportError
from wgvsock.transports.base import DatagramsReceived, Link
from wgvsock.transports.udp_link import Routes, UdpLink
from wgvsock.transports.udp_sockets import (
    ANCILLARY_SIZE,
    ARRIVALS,
    GRO_SIZE,
    NO_OFFLOAD,
    NO_SUCH_SOURCE,
    SEGMENT_SIZE,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    Ancillary,
    SocketAddress,
    accepts,
    open_sockets,
    set_mark,
    socket_address,
)
from wgvsock.virtio_net import MAXIMUM_UDP_SEGMENTS

MAX_DATAGRAM: Final = 65_507
"""Bytes: an IPv4 packet of 65,535 bytes minus its headers (RFC 768, RFC 791)."""

SEND_BUFFER_SIZE: Final = 256 * 1024
"""Bytes that can wait while the sockets accept no more: one batch of the tunnel."""

READ_BUDGET: Final = 1 << 20
"""Bytes to read before the event loop gets its turn, so that a flood cannot starve the TUN and the timers."""

_READ_COST: Final = 4096
"""Bytes charged for each read in addition to its length: a flood of empty datagrams must use up the budget as well."""

MAX_LINKS: Final = 4096
"""Remotes to remember. Anybody can add one by sending garbage, so all are forgotten when the limit is reached. That
costs the peers nothing: their links are recreated with their next datagram."""

_log = logging.getLogger(__name__)


class UdpTransport:
    """A `Transport` over UDP. Its links share one send buffer, as they share the sockets.

    An endpoint is a `UdpAddress` or a `UdpLink`.

    Args:
        port: Port to listen on, on every address. 0 lets the kernel choose.
        fwmark: Mark of outgoing packets for routing and filtering (SO_MARK), 0 for none.
        watch_routes: Opens a watch that reports changed routes to remotes. If it is None or returns None, route changes
            go unnoticed.

    Attributes:
        routes_state: Number of route changes so far.
        dropped_unsendable: Datagrams that could not be sent.
    """

    def __init__(
        self, port: int = 0, *, fwmark: int = 0, watch_routes: Callable[[], Routes | None] | None = None
    ) -> None:
        self._port = port
        self._fwmark = fwmark
        self._sockets: dict[int, socket.socket] = {}
        self._segmentation = False
        self._links: dict[tuple[SocketAddress, Ancillary | None], UdpLink] = {}
        self._watch_routes = watch_routes
        self._routes: Routes | None = None
        self.routes_state = 0
        self._on_datagrams: DatagramsReceived | None = None
        self._on_writable: Callable[[Link], None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._received = memoryview(bytearray(1 << 16))
        self._buffer = memoryview(bytearray(SEND_BUFFER_SIZE))
        self._queue: list[tuple[UdpLink, int]] = []  # the datagrams in the buffer, in order
        self._start = 0  # the first byte that the kernel has not accepted
        self._end = 0  # after the last committed byte
        self._blocked: tuple[socket.socket, UdpLink] | None = None
        self.dropped_unsendable = 0

    @property
    def listen_port(self) -> int:
        """The port in use, or the configured one before the start."""
        return self._port

    @property
    def fwmark(self) -> int:
        """The mark of outgoing packets, 0 for none."""
        return self._fwmark

    @property
    def blocked(self) -> bool:
        """Whether the kernel accepts no more at present."""
        return self._blocked is not None

    # Life cycle.

    async def start(
        self,
        on_datagrams: DatagramsReceived,
        on_writable: Callable[[Link], None],
        on_connected: Callable[[Link], None],  # noqa: ARG002  # UDP connects nothing
    ) -> None:
        """See `Transport.start`."""
        self._loop = asyncio.get_running_loop()
        self._on_datagrams = on_datagrams
        self._on_writable = on_writable
        self._open(self._port)
        self._routes = self._watch_routes() if self._watch_routes is not None else None
        if self._routes is not None:
            self._loop.add_reader(self._routes.fileno(), self._routes_changed)

    async def set_listen_port(self, port: int) -> None:
        """Move to another port. Remotes learn it from the next datagram.

        Args:
            port: The port, or 0 to let the kernel choose.

        Raises:
            ListenError: The port is in use. The old sockets stay.
        """
        blocked = self._blocked
        self._open(port)
        if blocked is not None and self._on_writable is not None:
            self._on_writable(blocked[1])

    def set_fwmark(self, mark: int) -> None:
        """Mark outgoing packets from now on, or stop marking them if `mark` is 0.

        Raises:
            TransportError: It is not permitted.
        """
        try:
            for sock in self._sockets.values():
                set_mark(sock, mark)
        except OSError as error:
            raise TransportError(
                "cannot mark outgoing packets", why=error.strerror or str(error), fix="give the process CAP_NET_ADMIN"
            ) from None
        self._fwmark = mark

    def retain(self, endpoints: Collection[object]) -> None:
        """See `Transport.retain`."""

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._use({})
        if self._routes is not None:
            self._loop.remove_reader(self._routes.fileno())
            self._routes.close()
            self._routes = None

    def _open(self, port: int) -> None:
        sockets = open_sockets(port, self._fwmark)
        self._use(sockets)
        self._port = next(iter(sockets.values())).getsockname()[1]
        self._segmentation = all(accepts(sock, UDP_SEGMENT, 0) for sock in sockets.values())
        _log.debug("listening on UDP port %d", self._port)

    def _use(self, sockets: dict[int, socket.socket]) -> None:
        """Switch to these sockets. Data that the old ones did not accept is lost."""
        self._unblock()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets = sockets
        for sock in sockets.values():
            self._loop.add_reader(sock, self._receive, sock)
        self._forget_queue()

    # Sending.

    def link_for(self, endpoint: object) -> UdpLink | None:
        """See `Transport.link_for`. None for a link-local address whose interface does not exist."""
        if isinstance(endpoint, UdpLink):
            return endpoint
        if not isinstance(endpoint, UdpAddress):
            return None
        try:
            return self.link_to(socket_address(endpoint))
        except OSError:
            return None  # the interface of a link-local address does not exist now

    def link_to(self, sockaddr: SocketAddress, arrival: Ancillary | None = None) -> UdpLink:
        """See `wgvsock.transports.udp_link.Sender.link_to`."""
        link = self._links.get((sockaddr, arrival))
        if link is None:
            if len(self._links) >= MAX_LINKS:
                self._links.clear()
            link = self._links[sockaddr, arrival] = UdpLink(self, sockaddr, arrival)
        return link

    def forget(self, sockaddr: SocketAddress, arrival: Ancillary | None) -> None:
        """See `wgvsock.transports.udp_link.Sender.forget`."""
        self._links.pop((sockaddr, arrival), None)

    def _routes_changed(self) -> None:
        if self._routes is not None:
            self._routes.drain()
            self.routes_state += 1

    def reserve(self, size: int) -> memoryview | None:
        """Reserve space after the queued datagrams.

        Returns:
            `size` writable bytes, or None if the buffer is full.
        """
        if self._end + size > SEND_BUFFER_SIZE:
            self.flush()
            if self._end + size > SEND_BUFFER_SIZE:
                return None
        return self._buffer[self._end : self._end + size]

    def commit(self, link: UdpLink, length: int) -> None:
        """Queue the datagram of this length in the reserved space for that link."""
        self._queue.append((link, length))
        self._end += length

    def flush(self) -> None:
        """Send queued datagrams until the kernel accepts no more. Runs of one size and one remote go together."""
        if self._blocked is not None:
            return
        queue = self._queue
        position = 0
        while position < len(queue):
            link, size = queue[position]
            count, total = self._run(position)
            sock = self._sockets.get(socket.AF_INET6 if len(link.sockaddr) > 2 else socket.AF_INET)
            if sock is None:
                self.dropped_unsendable += count
            else:
                try:
                    count, total = self._send(sock, link, size, count, total)
                except BlockingIOError:
                    del queue[:position]
                    self._block(sock, link)
                    return
            position += count
            self._start += total
        self._forget_queue()

    def _run(self, position: int) -> tuple[int, int]:
        """The number of datagrams from here on that can go out in one call, and their total bytes.

        They have equal sizes. Only the last may be shorter.
        """
        link, size = self._queue[position]
        count, total = 1, size
        if self._segmentation:
            for other, length in self._queue[position + 1 : position + MAXIMUM_UDP_SEGMENTS]:
                if other is not link or length > size or total + length > MAX_DATAGRAM:
                    break
                count += 1
                total += length
                if length < size:
                    break
        return count, total

    def _send(self, sock: socket.socket, link: UdpLink, size: int, count: int, total: int) -> tuple[int, int]:
        """Send a run, or only its first datagram if the kernel refuses the run.

        Returns:
            The number of datagrams that were sent or dropped, and their total bytes.

        Raises:
            BlockingIOError: Nothing was sent or dropped.
        """
        data = self._buffer[self._start : self._start + total]
        if link.routes_known != self.routes_state:
            link.check_source(self._routes, self._fwmark)
        try:
            if count > 1:
                segment = (SOL_UDP, UDP_SEGMENT, SEGMENT_SIZE.pack(size))
                sock.sendmsg((data,), (*link.control, segment), 0, link.sockaddr)
            elif link.control:
                sock.sendmsg((data,), link.control, 0, link.sockaddr)
            else:
                sock.sendto(data, link.sockaddr)
        except BlockingIOError:
            raise
        except OSError as error:
            if count == 1 and link.source is not None and error.errno in NO_SUCH_SOURCE:
                # The address is gone or leads nowhere. With a run, it may be the run that is refused: see below.
                link.forget_source()
                return self._send(sock, link, size, count, total)
            if count == 1:
                # Unreachable, filtered, too long for the path: lost, as on a network.
                self.dropped_unsendable += 1
                return count, total
            if error.errno in NO_OFFLOAD:
                self._segmentation = False
                _log.debug("UDP segmentation offload is off: %s", error.strerror)
            # A segment must not be fragmented, but a datagram may be.
            return self._send(sock, link, size, 1, size)
        return count, total

    def _block(self, sock: socket.socket, link: UdpLink) -> None:
        waiting = self._end - self._start
        self._buffer[:waiting] = self._buffer[self._start : self._end]
        self._start, self._end = 0, waiting
        self._blocked = sock, link
        self._loop.add_writer(sock, self._drain)

    def _drain(self) -> None:
        link = self._unblock()
        self.flush()
        if link is not None and self._on_writable is not None and not self.blocked:
            self._on_writable(link)

    def _unblock(self) -> UdpLink | None:
        if self._blocked is None:
            return None
        (sock, link), self._blocked = self._blocked, None
        self._loop.remove_writer(sock)
        return link

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._start = self._end = 0

    # Receiving.

    def _receive(self, sock: socket.socket) -> None:
        on_datagrams, buffer = self._on_datagrams, self._received
        budget = READ_BUDGET
        while budget > 0 and on_datagrams is not None:
            try:
                length, ancillary, _, sockaddr = sock.recvmsg_into((buffer,), ANCILLARY_SIZE)
            except OSError:  # BlockingIOError: no more data. Others are reported once, and UDP ignores them
                return
            size, arrival = 0, None
            for level, kind, value in ancillary:
                if level == SOL_UDP and kind == UDP_GRO:
                    (size,) = GRO_SIZE.unpack_from(value)
                elif (level, kind) in ARRIVALS:
                    arrival = (level, kind, value)
            on_datagrams(self.link_to(sockaddr, arrival), _split(buffer[:length], size))
            budget -= length + _READ_COST


def _split(data: memoryview, size: int) -> list[memoryview]:
    """Split what the kernel has merged (UDP_GRO, udp(7)): every datagram but the last has `size` bytes."""
    if 0 < size < len(data):
        return [data[start : start + size] for start in range(0, len(data), size)]
    return [data]
