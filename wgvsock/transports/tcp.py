"""TCP stream sockets: for tests, for labs without vsock, and for comparison."""

from __future__ import annotations

import socket
from typing import Final

from wgvsock.addresses import Port, TcpAddress

KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 10
"""Seconds of silence before the first probe, and between two (tcp(7))."""

KEEPALIVE_PROBES: Final = 3
"""Unanswered ones until the stream ends."""


def tcp_socket(host: str) -> socket.socket:
    """A non-blocking TCP socket of the host's family alone, with the options of `set_options`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 can listen on one port
    set_options(sock)
    return sock


def set_options(sock: socket.socket) -> None:
    """Send at once, as the tunnel writes whole batches; notice within a minute that the remote is gone without a word.

    A peer comes back on a new stream, and only accepted streams that have ended make room for it.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def tcp_address(name: tuple[str, int] | tuple[str, int, int, int]) -> TcpAddress:
    """The address that getpeername() or accept() reports."""
    return TcpAddress(name[0], Port(name[1]))
