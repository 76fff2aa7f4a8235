"""TCP stream sockets: for tests, for labs without vsock, and for comparison."""

from __future__ import annotations

import socket

from wgvsock.addresses import Port, TcpAddress


def tcp_socket(host: str) -> socket.socket:
    """A non-blocking TCP socket of the host's family alone, without Nagle's delay."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 can listen on one port
    no_delay(sock)
    return sock


def no_delay(sock: socket.socket) -> None:
    """Send at once: the tunnel already writes whole batches."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tcp_address(name: tuple[str, int] | tuple[str, int, int, int]) -> TcpAddress:
    """The address that getpeername() or accept() reports."""
    return TcpAddress(name[0], Port(name[1]))
