"""Passes the enclave's DNS datagrams to the forwarder, all through one socket of each IP version.

libslirp is used only for queries over TCP. It opens one socket for each port that a datagram comes from, and a resolver
chooses a new port for each query. The forwarder cannot have port 53, for which libslirp closes such a socket early.
Each query would then occupy one of the enclave's connections for four minutes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from wgvsock.addresses import DNS_PORT, IpAddress
from wgvsock.uplink.icmp import FAMILIES, Family, datagram, datagram_checksum, error_packet

MAX_QUERIES: Final = 1024
"""Queries that wait for an answer. Twice as many as the forwarder accepts. A new one replaces the oldest."""

_UDP: Final = 17
_HEADER: Final = 8
_DNS_HEADER: Final = 12
_LONGEST: Final = 65_535
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


@dataclass(frozen=True, slots=True)
class _Query:
    family: Family
    source: bytes
    destination: bytes
    port: int
    message: bytes


class Queries:
    """The queries to port 53 of a gateway that have no answer yet.

    Each query gets a unique identifier (RFC 1035, section 4.1.1) on its way to the forwarder. The enclave's
    identifier is restored in the answer.

    Args:
        opened: Called with each socket's descriptor.
        gateways: The relay's tunnel addresses.
        port: The port of this machine's loopback on which the forwarder listens.
    """

    def __init__(self, opened: Callable[[int], None], gateways: Iterable[IpAddress], port: int) -> None:
        self._gateways: dict[int, bytes] = {gateway.version: gateway.packed for gateway in gateways}
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: OrderedDict[int, _Query] = OrderedDict()
        self._next = 0
        for version in self._gateways:
            # The forwarder does not listen for IPv6 either on a machine without it.
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                sock = stack.enter_context(socket.socket(FAMILIES[version].family, kind))
                sock.connect((_LOOPBACK[version], port))
                stack.pop_all()
                self._sockets[version] = sock
                opened(sock.fileno())

    def __contains__(self, fd: int) -> bool:
        return any(sock.fileno() == fd for sock in self._sockets.values())

    def __len__(self) -> int:
        return len(self._waiting)

    def takes(self, packet: memoryview) -> bool:
        """Whether a plain packet is a datagram to port 53 of a gateway."""
        family = FAMILIES[packet[0] >> 4]
        return (
            packet[family.protocol_at] == _UDP
            and int.from_bytes(packet[family.header + 2 : family.header + 4], "big") == DNS_PORT
            and bytes(packet[family.destination]) == self._gateways.get(family.version)
        )

    def send(self, packet: memoryview) -> bytes | None:
        """Forward a query. One that is damaged or cannot be sent is lost, as on any network.

        Args:
            packet: A packet for which `takes` holds, with a complete checksum.

        Returns:
            An error as a packet for the enclave if nobody listens on the forwarder's port, otherwise None.
        """
        family = FAMILIES[packet[0] >> 4]
        source, destination = bytes(packet[family.source]), bytes(packet[family.destination])
        port, _, length, checksum = struct.unpack_from(">4H", packet, family.header)
        body = bytes(packet[family.header : family.header + length])
        is_sound = datagram_checksum(source, destination, body) == 0 if checksum else family.version == 4
        if len(body) != length or length < _HEADER + _DNS_HEADER or not is_sound:
            return None
        query = _Query(family, source, destination, port, body[_HEADER:])
        if (sock := self._sockets.get(family.version)) is None:
            return _unreachable(query)
        try:
            sock.send(struct.pack(">H", self._note(query)) + query.message[2:])
        except ConnectionRefusedError:
            self._waiting.popitem()
            return _unreachable(query)
        except OSError:
            return None
        return None

    def receive(self, fd: int) -> bytes | None:
        """Receive an answer from the forwarder.

        Args:
            fd: The socket's descriptor.

        Returns:
            A packet for the enclave, or None if there is none.
        """
        sock = next(sock for sock in self._sockets.values() if sock.fileno() == fd)
        try:
            message = sock.recv(_LONGEST)
        except ConnectionRefusedError:
            return _unreachable(self._waiting.popitem()[1]) if self._waiting else None
        except OSError:
            return None
        query = self._waiting.pop(int.from_bytes(message[:2], "big"), None)
        if query is None or len(message) < _DNS_HEADER:
            return None
        answer = query.message[:2] + message[2:]
        return datagram(query.family, query.destination, query.source, (DNS_PORT, query.port), answer)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def _note(self, query: _Query) -> int:
        if len(self._waiting) >= MAX_QUERIES:
            self._waiting.popitem(last=False)
        while (identifier := self._next) in self._waiting:
            self._next = identifier + 1 & 0xFFFF
        self._next = identifier + 1 & 0xFFFF
        self._waiting[identifier] = query
        return identifier


def _unreachable(query: _Query) -> bytes:
    sent = datagram(query.family, query.source, query.destination, (query.port, DNS_PORT), query.message)
    return error_packet(query.family, query.destination, sent, query.family.port_unreachable)
