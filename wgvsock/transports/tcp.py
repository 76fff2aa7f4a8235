"""TCP stream sockets: for tests, for labs without vsock, and for comparison."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from typing import Final

from wgvsock.addresses import Port, TcpAddress

KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 10
"""Seconds of silence before the first probe, and seconds between two probes (tcp(7))."""

KEEPALIVE_PROBES: Final = 3
"""Unanswered probes after which the stream ends."""


def tcp_socket(host: str) -> socket.socket:
    """A non-blocking TCP socket for the host's address family only, with the options of `set_options`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 can use the same port
    set_options(sock)
    return sock


def accept_both_families(sock: socket.socket) -> None:
    """Let a socket that is bound to ``::`` accept IPv4 connections as well (ipv6(7))."""
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def set_options(sock: socket.socket) -> None:
    """Disable Nagle's algorithm, and detect within about a minute that the remote has vanished.

    The tunnel writes whole batches, so delaying them gains nothing. A peer that vanished returns on a new stream, and
    the old one has to end to make room for it.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def bind_to_interface(sock: socket.socket, interface: str) -> None:
    """Restrict this socket's packets to one interface (SO_BINDTODEVICE, socket(7)).

    Raises:
        OSError: The interface does not exist.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")


def tcp_address(name: tuple[str, int] | tuple[str, int, int, int]) -> TcpAddress:
    """Convert an address from getpeername() or accept(). ``::ffff:192.0.2.1`` becomes an IPv4 address."""
    host = name[0]
    if host.startswith("::ffff:") and (mapped := IPv6Address(host).ipv4_mapped):  # RFC 4291, section 2.5.5.2
        host = str(mapped)
    return TcpAddress(host, Port(name[1]))
