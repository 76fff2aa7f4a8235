"""The datagram transport: WireGuard over UDP as everybody else speaks it, on IPv4 and IPv6.

One socket a family on the same port, as in wireguard-go's ``StdNetBind``. Where the kernel has them, generic
segmentation and receive offload (UDP_SEGMENT since Linux 4.18, UDP_GRO since 5.0; udp(7)) carry a run of datagrams of
one size, for one remote, in one call.

A remote is a `UdpLink`, which is equal to another one of the same remote: a peer roams when an authenticated datagram
comes from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection
from typing import Final

from wgvsock.addresses import Port, UdpAddress
from wgvsock.errors import TransportError
from wgvsock.transports.base import DatagramsReceived, Link
from wgvsock.transports.errors import ListenError

MAX_DATAGRAM: Final = 65_507
"""Bytes: 65,535 of an IPv4 packet without the headers (RFC 768, RFC 791)."""

MAX_SEGMENTS: Final = 64
"""Datagrams in one call with UDP_SEGMENT: UDP_MAX_SEGMENTS of the kernels up to 6.8; later ones take 128."""

SEND_BUFFER_SIZE: Final = 256 * 1024
"""Bytes that wait while the sockets take no more: one batch of the tunnel."""

SOCKET_BUFFER_SIZE: Final = 4 << 20
"""Bytes asked of the kernel for each direction: 40 ms at 1 Gbit/s, while the event loop does something else."""

READ_BUDGET: Final = 1 << 20
"""Bytes read before the event loop gets its turn, so that a flood cannot starve the TUN and the timers."""

_READ_COST: Final = 4096
"""Bytes that each read is charged on top of its length: a flood of empty datagrams must use the budget up as well."""

MAX_LINKS: Final = 4096
"""Remotes remembered. Anybody can make us remember one by sending garbage; the whole memory is dropped when full, which
costs the peers nothing: theirs are made again with their next datagram."""

_BIND_ATTEMPTS: Final = (
    100  # wireguard-go's number, until both families have the port that the kernel chose for the first
)

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_MARK: Final = struct.Struct("=I")
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_GRO_SIZE.size)
_NO_OFFLOAD: Final = frozenset({errno.EIO, errno.EOPNOTSUPP})  # the interface cannot fill in checksums

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]

_log = logging.getLogger(__name__)


class UdpLink:
    """One remote, and the endpoint that the WireGuard core stores for it."""

    __slots__ = ("_transport", "sockaddr")

    def __init__(self, transport: UdpTransport, sockaddr: _SocketAddress) -> None:
        self._transport = transport
        self.sockaddr = sockaddr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UdpLink) and other.sockaddr == self.sockaddr

    def __hash__(self) -> int:
        return hash(self.sockaddr)

    def __repr__(self) -> str:
        return f"<UdpLink {self.address}>"

    @property
    def address(self) -> UdpAddress:
        """See `Link.address`; a link-local remote keeps its interface's index (``fe80::1%3``)."""
        host, port, *rest = self.sockaddr
        return UdpAddress(f"{host}%{rest[1]}" if rest and rest[1] else host, Port(port))

    @property
    def writable(self) -> bool:
        """See `Link.writable`; all links share the sockets."""
        return not self._transport.blocked

    @property
    def authenticated(self) -> bool:
        """See `Link.authenticated`; nothing is ever connected."""
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


class UdpTransport:
    """A `Transport` over UDP. Its links share one send buffer, as they share the sockets.

    An endpoint is a `UdpAddress` or a `UdpLink`.

    Args:
        port: Where to listen on every address; 0: where the kernel chooses.
        fwmark: Mark of outgoing packets for routing and filtering (SO_MARK); 0: none.
    """

    def __init__(self, port: int = 0, *, fwmark: int = 0) -> None:
        self._port = port
        self._fwmark = fwmark
        self._sockets: dict[int, socket.socket] = {}
        self._segmentation = False
        self._links: dict[_SocketAddress, UdpLink] = {}
        self._on_datagrams: DatagramsReceived | None = None
        self._on_writable: Callable[[Link], None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._received = memoryview(bytearray(1 << 16))
        self._buffer = memoryview(bytearray(SEND_BUFFER_SIZE))
        self._queue: list[tuple[UdpLink, int]] = []  # datagrams in the buffer, one behind the other
        self._start = 0  # the first byte that the kernel has not taken
        self._end = 0  # behind the last committed byte
        self._blocked: tuple[socket.socket, UdpLink] | None = None
        self.dropped_unsendable = 0

    @property
    def listen_port(self) -> int:
        """The port in use; 0 before the start."""
        return self._port

    @property
    def fwmark(self) -> int:
        """The mark of outgoing packets; 0: none."""
        return self._fwmark

    @property
    def blocked(self) -> bool:
        """Whether the kernel takes no more at present."""
        return self._blocked is not None

    # Life.

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

    async def set_listen_port(self, port: int) -> None:
        """Move to another port; remotes learn it from the next datagram.

        Args:
            port: 0: one that the kernel chooses.

        Raises:
            ListenError: The port is in use; the old sockets stay.
        """
        blocked = self._blocked
        self._open(port)
        if blocked is not None and self._on_writable is not None:
            self._on_writable(blocked[1])

    def set_fwmark(self, mark: int) -> None:
        """Mark outgoing packets from now on; 0: no more.

        Raises:
            TransportError: Not permitted.
        """
        try:
            for sock in self._sockets.values():
                _mark(sock, mark)
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

    def _open(self, port: int) -> None:
        sockets = _open_sockets(port, self._fwmark)
        self._use(sockets)
        self._port = next(iter(sockets.values())).getsockname()[1]
        self._segmentation = all(_accepts(sock, _UDP_SEGMENT, 0) for sock in sockets.values())
        _log.debug("listening on UDP port %d", self._port)

    def _use(self, sockets: dict[int, socket.socket]) -> None:
        """Change to these sockets; what the old ones did not take is lost."""
        self._unblock()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets = sockets
        for sock in sockets.values():
            self._loop.add_reader(sock, self._receive, sock)
        self._forget_queue()

    # The way out.

    def link_for(self, endpoint: object) -> UdpLink | None:
        """See `Transport.link_for`; None: no socket of the address's family."""
        if isinstance(endpoint, UdpLink):
            return endpoint
        if not isinstance(endpoint, UdpAddress):
            return None
        try:
            return self._link(_socket_address(endpoint))
        except OSError:
            return None  # the interface of a link-local address is not there now

    def _link(self, sockaddr: _SocketAddress) -> UdpLink:
        link = self._links.get(sockaddr)
        if link is None:
            if len(self._links) >= MAX_LINKS:
                self._links.clear()
            link = self._links[sockaddr] = UdpLink(self, sockaddr)
        return link

    def reserve(self, size: int) -> memoryview | None:
        """Room behind the datagrams that wait; None: the buffer is full."""
        if self._end + size > SEND_BUFFER_SIZE:
            self.flush()
            if self._end + size > SEND_BUFFER_SIZE:
                return None
        return self._buffer[self._end : self._end + size]

    def commit(self, link: UdpLink, length: int) -> None:
        """The reserved room holds a datagram of this length for that link."""
        self._queue.append((link, length))
        self._end += length

    def flush(self) -> None:
        """Send what waits, runs of one size and one remote together, until the kernel takes no more."""
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
        """How many datagrams from here on go out in one call, and their bytes: equal sizes, the last may be shorter."""
        link, size = self._queue[position]
        count, total = 1, size
        if self._segmentation:
            for other, length in self._queue[position + 1 : position + MAX_SEGMENTS]:
                if other is not link or length > size or total + length > MAX_DATAGRAM:
                    break
                count += 1
                total += length
                if length < size:
                    break
        return count, total

    def _send(self, sock: socket.socket, link: UdpLink, size: int, count: int, total: int) -> tuple[int, int]:
        """Send a run, or its first datagram where the kernel refuses the run; what was dealt with, sent or dropped.

        Raises:
            BlockingIOError: Nothing was dealt with.
        """
        data = self._buffer[self._start : self._start + total]
        try:
            if count > 1:
                segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))
                sock.sendmsg((data,), (segment,), 0, link.sockaddr)
            else:
                sock.sendto(data, link.sockaddr)
        except BlockingIOError:
            raise
        except OSError as error:
            if count == 1:
                # Unreachable, filtered, too long for the path: lost, as on a network.
                self.dropped_unsendable += 1
                return count, total
            if error.errno in _NO_OFFLOAD:
                self._segmentation = False
                _log.debug("UDP segmentation offload is off: %s", error.strerror)
            # A segment may not be fragmented, a datagram may be.
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

    # The way in.

    def _receive(self, sock: socket.socket) -> None:
        on_datagrams, buffer = self._on_datagrams, self._received
        budget = READ_BUDGET
        while budget > 0 and on_datagrams is not None:
            try:
                length, ancillary, _, sockaddr = sock.recvmsg_into((buffer,), _ANCILLARY_SIZE)
            except OSError:  # BlockingIOError: no more; anything else is reported once, and UDP makes nothing of it
                return
            on_datagrams(self._link(sockaddr), _split(buffer[:length], ancillary))
            budget -= length + _READ_COST


def _split(data: memoryview, ancillary: list[tuple[int, int, bytes]]) -> list[memoryview]:
    """The datagrams that the kernel has put together: all but the last of the size that it tells (UDP_GRO, udp(7))."""
    for level, kind, value in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            (size,) = _GRO_SIZE.unpack_from(value)
            if 0 < size < len(data):
                return [data[start : start + size] for start in range(0, len(data), size)]
    return [data]


def _open_sockets(port: int, fwmark: int) -> dict[int, socket.socket]:
    """One socket for each family that this machine has, all on one port.

    Raises:
        ListenError: The port is in use, or the mark not permitted.
    """
    attempts = 1 if port else _BIND_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _bind_families(port, fwmark)
        except OSError as error:
            if attempts and error.errno == errno.EADDRINUSE:
                continue
            raise ListenError(
                f"cannot listen on UDP port {port}",
                why=error.strerror or str(error),
                fix="stop whatever holds the port, or choose another",
            ) from None


def _bind_families(port: int, fwmark: int) -> dict[int, socket.socket]:
    sockets: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as opened:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and family == socket.AF_INET6:
                    continue  # a kernel without IPv6
                raise
            sockets[family] = opened.enter_context(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if fwmark:
                _mark(sock, fwmark)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_SIZE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
            _accepts(sock, _UDP_GRO, 1)
            sock.bind(("", port))
            port = sock.getsockname()[1]
        opened.pop_all()
    return sockets


def _mark(sock: socket.socket, mark: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark))


def _accepts(sock: socket.socket, option: int, value: int) -> bool:
    """Set an option of UDP; False: this kernel does not have it."""
    try:
        sock.setsockopt(_SOL_UDP, option, value)
    except OSError:
        return False
    return True


def _socket_address(address: UdpAddress) -> _SocketAddress:
    """What sendto() takes, and recvmsg() reports.

    Raises:
        OSError: A link-local address names an interface that does not exist.
    """
    host, _, zone = address.host.partition("%")
    if ":" not in host:
        return host, address.port
    return host, address.port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone) if zone else 0
