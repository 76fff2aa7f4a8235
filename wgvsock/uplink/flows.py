"""Tracks which datagrams already have a socket. Any other datagram may need a new one, and their number is limited.

libslirp opens one socket for each address and port that the enclave sends from. It closes the socket when nothing has
arrived for a while. The callbacks that announce both pass only the file descriptor.
"""

from __future__ import annotations

import socket
from typing import Final

from wgvsock.uplink.icmp import FAMILIES
from wgvsock.uplink.windows import ITSELF

_TCP: Final = 6
_UDP: Final = 17
_SYN: Final = 0x02


class DatagramFlows:
    """The enclave's addresses and ports that have a socket."""

    def __init__(self) -> None:
        self._ends: dict[int, bytes] = {}
        self._known: set[bytes] = set()
        self._sending = b""

    def begins(self, packet: memoryview) -> bool:
        """Whether a plain packet from the enclave may need one more socket.

        That is a segment that begins a connection, a datagram from a new address and port, and every ICMP message,
        because ICMP is not tracked.
        """
        family = FAMILIES[packet[0] >> 4]
        protocol = packet[family.protocol_at]
        if protocol == _TCP:
            return bool(packet[family.header + 13] & _SYN)
        return protocol != _UDP or _end_of(packet) not in self._known

    def sends(self, packet: memoryview) -> None:
        """Note that this plain packet goes to the stack next, so that a socket opened now belongs to it."""
        protocol = packet[FAMILIES[packet[0] >> 4].protocol_at]
        self._sending = _end_of(packet) if protocol == _UDP else b""

    def opened(self, fd: int) -> None:
        """Note that the stack has opened a socket."""
        if self._sending:
            self._ends[fd] = self._sending
            self._known.add(self._sending)
            self._sending = b""

    def end_of(self, fd: int) -> bytes | None:
        """The enclave's address and port that a datagram socket serves, packed, or None for another kind of socket."""
        return self._ends.get(fd)

    def closed(self, fd: int) -> None:
        """Note that the stack is closing a socket."""
        self._known.discard(self._ends.pop(fd, b""))


def _end_of(packet: memoryview) -> bytes:
    """The source address (4 or 16 bytes) and port (2 bytes) of a datagram."""
    family = FAMILIES[packet[0] >> 4]
    return bytes(packet[family.source]) + bytes(packet[family.header : family.header + 2])


def caller_of(fd: int) -> tuple[int, int] | None:
    """IP version and port of a socket's peer, or `ITSELF` for a Unix socket, or None if it has no peer."""
    sock = socket.socket(fileno=fd)
    try:
        if sock.family == socket.AF_UNIX:
            sock.getpeername()
            return ITSELF
        return (4 if sock.family == socket.AF_INET else 6, int(sock.getpeername()[1]))
    except OSError:  # a listening or a datagram socket
        return None
    finally:
        sock.detach()
