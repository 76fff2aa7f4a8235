"""The sockets of a forwarder. Nothing here looks into DNS messages."""

from __future__ import annotations

import contextlib
import errno
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

from wgvsock.addresses import DNS_PORT, IpAddress, TcpAddress
from wgvsock.transports.errors import ListenError
from wgvsock.transports.sockets import connect_stream

RECEIVE_BUFFER: Final = 1 << 20
"""Bytes of receive buffer. The kernel charges about a kilobyte for a small datagram, so a burst of 1000 queries
fits."""

BACKLOG: Final = 64
"""TCP connections that may wait to be accepted."""

LOOPBACK: Final[tuple[IpAddress, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
"""This machine's loopback addresses. The user-space uplink redirects packets for the relay's tunnel addresses to
them."""

_NO_IPV6: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_IP_FREEBIND: Final = 15  # linux/in.h
_IPV6_FREEBIND: Final = 78  # linux/in6.h


class DnsSockets(Protocol):
    """Opens the sockets that queries arrive on and the sockets to name servers. See `KernelDnsSockets`."""

    def listen(self, address: IpAddress, interface: str) -> tuple[socket.socket, socket.socket]:
        """Bind port 53 for packets that arrive on one interface.

        Returns:
            A UDP socket and a listening TCP socket, both non-blocking.

        Raises:
            ListenError: The port is in use, or the process may not bind it.
        """
        ...

    def to_server(self, server: IpAddress) -> socket.socket:
        """Open a non-blocking UDP socket that is connected to a name server from a random port.

        Raises:
            OSError: There is no route to the server, or the process is out of file descriptors.
        """
        ...

    async def stream_to_server(self, server: IpAddress, *, deadline: float) -> socket.socket:
        """Open a non-blocking TCP connection to a name server.

        Args:
            server: The server's address.
            deadline: When to give up, in seconds on the event loop's clock.

        Raises:
            ConnectError: The server does not accept the connection in time.
        """
        ...


class KernelDnsSockets:
    """The sockets of a relay with a network interface: see `DnsSockets`."""

    def listen(self, address: IpAddress, interface: str) -> tuple[socket.socket, socket.socket]:
        """See `DnsSockets.listen`.

        The sockets stay bound when another program removes the address, until the relay restores it.
        """
        with contextlib.ExitStack() as stack:
            sockets: list[socket.socket] = []
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                try:
                    sock = stack.enter_context(socket.socket(_family(address), kind | socket.SOCK_NONBLOCK))
                    _bind(sock, address, interface)
                except OSError as error:
                    raise _listen_error(address, error) from None
                sockets.append(sock)
            stack.pop_all()
        return sockets[0], sockets[1]

    def to_server(self, server: IpAddress) -> socket.socket:
        """See `DnsSockets.to_server`. The kernel chooses the port, and delivers only what the server sends."""
        sock = socket.socket(_family(server), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((str(server), DNS_PORT))
        except OSError:
            sock.close()
            raise
        return sock

    async def stream_to_server(self, server: IpAddress, *, deadline: float) -> socket.socket:
        """See `DnsSockets.stream_to_server`."""
        return await connect_stream(TcpAddress(str(server), DNS_PORT), deadline=deadline)


class LoopbackDnsSockets(KernelDnsSockets):
    """Sockets for queries that come through the user-space uplink: on this machine's loopback, on a random port.

    Other programs on the machine can ask there, too. Their queries are judged as the enclave's are.
    """

    def __init__(self) -> None:
        self._port = 0

    @property
    def port(self) -> int:
        """The port, for both IP versions and both protocols. It never changes, because the engine gets it at start."""
        if not self._port:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.bind((str(LOOPBACK[0]), 0))
                self._port = sock.getsockname()[1]
        return self._port

    def listen(self, address: IpAddress, interface: str) -> tuple[socket.socket, socket.socket]:  # noqa: ARG002
        """See `DnsSockets.listen`. The sockets are bound to the loopback address of the same IP version."""
        local = LOOPBACK[0] if address.version == 4 else LOOPBACK[1]
        with contextlib.ExitStack() as stack:
            sockets: list[socket.socket] = []
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                try:
                    sock = stack.enter_context(socket.socket(_family(local), kind | socket.SOCK_NONBLOCK))
                    _listen_at(sock, local, self.port)
                except OSError as error:
                    if local.version == 6 and error.errno in _NO_IPV6:
                        # Without IPv6 on this machine, queries arrive over IPv4 only.
                        return _nowhere(), _nowhere(socket.SOCK_STREAM)
                    raise _listen_error(local, error, self.port) from None
                sockets.append(sock)
            stack.pop_all()
        return sockets[0], sockets[1]


def _listen_at(sock: socket.socket, address: IpAddress, port: int) -> None:
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.bind((str(address), port))
    if sock.type == socket.SOCK_STREAM:
        sock.listen(BACKLOG)


def _nowhere(kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    _listen_at(sock, LOOPBACK[0], 0)
    return sock


def _bind(sock: socket.socket, address: IpAddress, interface: str) -> None:
    # Linux accepts packets for any of its addresses on every interface. Without this option, the pod's neighbours could
    # ask, too.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    if address.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    if sock.type == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
    sock.bind((str(address), DNS_PORT))
    if sock.type == socket.SOCK_STREAM:
        sock.listen(BACKLOG)


def _listen_error(address: IpAddress, error: OSError, port: int = DNS_PORT) -> ListenError:
    fix = f"stop what else listens there or on every address: `ss -lpn sport = {port}`"
    if error.errno in {errno.EACCES, errno.EPERM}:
        fix = "give the relay CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"
    return ListenError(
        f"cannot answer DNS queries on {address}, port {port}", why=error.strerror or str(error), fix=fix
    )


def _family(address: IpAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
