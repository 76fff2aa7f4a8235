"""The UDP transport's sockets: one per address family on one port, their options, and their ancillary data."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Final

from wgvsock.addresses import UdpAddress
from wgvsock.transports.errors import ListenError

SOCKET_BUFFER_SIZE: Final = 4 << 20
"""Bytes to request from the kernel for each direction: 33 ms at 1 Gbit/s, while the event loop is busy."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SEGMENT_SIZE: Final = struct.Struct("=H")
GRO_SIZE: Final = struct.Struct("=i")
_MARK: Final = struct.Struct("=I")
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
PKTINFO: Final = struct.Struct("=i4s4s")  # interface, the local address, the header's destination
ARRIVALS: Final = frozenset({(socket.IPPROTO_IP, _IP_PKTINFO), (socket.IPPROTO_IPV6, _IPV6_PKTINFO)})
PKTINFO6: Final = struct.Struct("=16si")  # address, interface
ANCILLARY_SIZE: Final = socket.CMSG_SPACE(GRO_SIZE.size) + socket.CMSG_SPACE(PKTINFO6.size)
NO_SUCH_SOURCE: Final = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL})
NO_OFFLOAD: Final = frozenset({errno.EIO, errno.EOPNOTSUPP})  # the interface cannot fill in checksums

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Ancillary = tuple[int, int, bytes]

_BIND_ATTEMPTS: Final = 100
"""Attempts to bind both families to the port that the kernel chose for the first one. wireguard-go's number."""


def open_sockets(port: int, fwmark: int) -> dict[int, socket.socket]:
    """Open one socket for each address family that this machine has, all on one port.

    Args:
        port: The port, or 0 to let the kernel choose.
        fwmark: Mark of outgoing packets, 0 for none.

    Returns:
        Sockets by address family.

    Raises:
        ListenError: The port is in use, or the mark is not permitted.
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
                fix="stop the process that uses the port, or choose another",
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
                set_mark(sock, fwmark)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_SIZE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
            accepts(sock, UDP_GRO, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind(("", port))
            port = sock.getsockname()[1]
        opened.pop_all()
    return sockets


def set_mark(sock: socket.socket, mark: int) -> None:
    """Mark the socket's outgoing packets for routing and filtering.

    Raises:
        OSError: It is not permitted.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark))


def accepts(sock: socket.socket, option: int, value: int) -> bool:
    """Set a UDP option. False if this kernel does not have it."""
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True


def socket_address(address: UdpAddress) -> SocketAddress:
    """Convert an address to the form of sendto() and recvmsg().

    Raises:
        OSError: A link-local address names an interface that does not exist.
    """
    host, _, zone = address.host.partition("%")
    if ":" not in host:
        return host, address.port
    return host, address.port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone) if zone else 0
