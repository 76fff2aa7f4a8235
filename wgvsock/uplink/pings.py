"""Sends the enclave's echo requests through the kernel's ping sockets.

There is one socket for each source, destination and identifier. The kernel replaces the identifier in a request
(icmp(7)), so the enclave's identifier is restored in the reply, and in routers' errors about a request. libslirp is not
used for this. It forwards echo requests for IPv4 only, with one socket for each, and drops errors from routers.
"""

from __future__ import annotations

import errno
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from wgvsock.uplink.complaints import heard
from wgvsock.uplink.icmp import FAMILIES, Family, error_packet, message_packet

MAX_PINGS: Final = 64
"""Sockets at once. A new one replaces the least recently used."""

_ECHO: Final = 8
"""Bytes in the header of an echo message."""
_LONGEST: Final = 65_535


@dataclass(frozen=True, slots=True)
class _Asker:
    key: bytes
    family: Family
    source: bytes
    destination: bytes
    identifier: bytes


class Pings:
    """Sends echo requests, and turns the replies into packets.

    Args:
        opened: Called with each new socket's descriptor.
        closed: Called with a socket's descriptor before the socket is closed.
        gateways: The relay's tunnel addresses, packed to 4 or 16 bytes, by IP version.
    """

    def __init__(
        self, opened: Callable[[int], None], closed: Callable[[int], None], gateways: Mapping[int, bytes]
    ) -> None:
        self._opened = opened
        self._closed = closed
        self._gateways = gateways
        self._sockets: OrderedDict[bytes, socket.socket] = OrderedDict()
        self._askers: dict[int, _Asker] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._askers

    def __len__(self) -> int:
        return len(self._sockets)

    def takes(self, packet: memoryview) -> bool:
        """Whether a plain packet is an echo request to anyone but the relay, which answers by itself."""
        family = FAMILIES[packet[0] >> 4]
        return (
            packet[family.protocol_at] == family.protocol
            and packet[family.header] == family.echo_request
            and bytes(packet[family.destination]) != self._gateways.get(packet[0] >> 4)
        )

    def send(self, packet: memoryview) -> bytes | None:
        """Forward a request. If it cannot be sent, it is lost, as on any network.

        Args:
            packet: A packet for which `takes` holds.

        Returns:
            An error as a packet for the enclave if this machine does not permit pings; otherwise None.
        """
        version = packet[0] >> 4
        family, gateway = FAMILIES[version], self._gateways.get(version)
        source, destination = bytes(packet[family.source]), bytes(packet[family.destination])
        message = packet[family.header :]
        identifier = bytes(message[4:6])
        key = source + destination + identifier
        try:
            sock = self._sockets.get(key) or self._open(_Asker(key, family, source, destination, identifier))
            self._sockets.move_to_end(key)
            sock.setsockopt(family.level, family.hops_option, max(1, packet[family.hops_at] - 1))
            sock.send(message)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM}:
                return None  # lost, as on a network
            return gateway and error_packet(family, gateway, bytes(packet), family.prohibited)
        return None

    def receive(self, fd: int) -> bytes | None:
        """Receive a reply or a router's error from a socket.

        Args:
            fd: The socket's descriptor.

        Returns:
            A packet for the enclave, or None if there is none.
        """
        asker = self._askers[fd]
        sock, family = self._sockets[asker.key], asker.family
        try:
            if complaint := self._complaint(sock, asker):
                return complaint
            message = sock.recv(_LONGEST - family.header)
        except OSError:
            return None
        if len(message) < _ECHO or message[0] != family.echo_reply:
            return None
        message = message[:4] + asker.identifier + message[6:]
        return message_packet(family, asker.destination, asker.source, message)

    def close(self) -> None:
        """Close all sockets."""
        while self._sockets:
            self._close_oldest()

    @staticmethod
    def _complaint(sock: socket.socket, asker: _Asker) -> bytes | None:
        """The next error about one of the socket's requests as a packet for the enclave, or None."""
        family, complaint = asker.family, heard(sock, asker.family)
        if complaint is None or len(complaint.message) < _ECHO:
            return None
        quoted = complaint.message[:4] + asker.identifier + complaint.message[6:]
        request = message_packet(family, asker.source, asker.destination, quoted)
        return error_packet(family, complaint.router, request, complaint.kind, complaint.info)

    def _open(self, asker: _Asker) -> socket.socket:
        if len(self._sockets) >= MAX_PINGS:
            self._close_oldest()
        family = asker.family
        sock = socket.socket(family.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, family.protocol)
        try:
            sock.setsockopt(family.level, family.errors_option, 1)
            sock.connect((socket.inet_ntop(family.family, asker.destination), 0))
        except OSError:
            sock.close()
            raise
        self._sockets[asker.key] = sock
        self._askers[sock.fileno()] = asker
        self._opened(sock.fileno())
        return sock

    def _close_oldest(self) -> None:
        _, sock = self._sockets.popitem(last=False)
        del self._askers[sock.fileno()]
        self._closed(sock.fileno())
        sock.close()
