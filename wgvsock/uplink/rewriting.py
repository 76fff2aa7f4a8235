"""Redirects connections to port 53 of the relay's tunnel address to the port on which the DNS forwarder listens.

libslirp redirects packets for the relay's tunnel addresses to this machine's loopback, and keeps the port. Port 53 of
the loopback may belong to another name server, and binding it needs a privilege.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.addresses import DNS_PORT, IpAddress
from wgvsock.checksum import changed_checksum
from wgvsock.uplink.icmp import FAMILIES
from wgvsock.virtio_net import CHECKSUM_OFFSET

_TCP: Final = 6
_FRAGMENTED: Final = 0x3FFF
_NAME_PORT: Final = struct.pack(">H", DNS_PORT)


class NamePort:
    """Rewrites TCP packets between the enclave and a gateway. `wgvsock.uplink.queries` serves queries over UDP.

    Args:
        gateways: The relay's tunnel addresses.
        port: The port on which the forwarder listens.
    """

    def __init__(self, gateways: tuple[IpAddress, ...], port: int) -> None:
        self._gateways: dict[int, bytes] = {gateway.version: gateway.packed for gateway in gateways}
        self._port = struct.pack(">H", port)

    def to_forwarder(self, packet: memoryview, *, checksum_is_open: bool = False) -> None:
        """Redirect a packet from the enclave to the forwarder if it belongs to such a connection.

        Args:
            packet: Any IP packet, which is modified in place.
            checksum_is_open: Whether its checksum is partial and covers only the pseudo-header.
        """
        self._rewrite(packet, 1, _NAME_PORT, self._port, checksum_is_open=checksum_is_open)

    def answered(self, packet: bytes) -> bytes:
        """Return the packet with port 53 as its source if the forwarder sent it, and any other packet unchanged."""
        family = FAMILIES.get(packet[0] >> 4)
        if family is None or packet[family.header : family.header + 2] != self._port:
            return packet
        changed = bytearray(packet)
        self._rewrite(memoryview(changed), 0, self._port, _NAME_PORT, checksum_is_open=False)
        return bytes(changed)

    def _rewrite(self, packet: memoryview, end: int, old: bytes, new: bytes, *, checksum_is_open: bool) -> None:
        """Change a port where the gateway is this end of the packet: 0 is its source, 1 its destination."""
        version = packet[0] >> 4
        gateway = self._gateways.get(version)
        if gateway is None or len(packet) < FAMILIES[version].header + 8:
            return
        family = FAMILIES[version]
        at, checksum_at = family.header + 2 * end, family.header + CHECKSUM_OFFSET[_TCP]
        if packet[(family.source, family.destination)[end]] != gateway or packet[at : at + 2] != old:
            return
        if packet[family.protocol_at] != _TCP or (version == 4 and int.from_bytes(packet[6:8], "big") & _FRAGMENTED):
            return
        packet[at : at + 2] = new
        if not checksum_is_open and len(packet) >= checksum_at + 2:
            changed = changed_checksum(packet[checksum_at : checksum_at + 2], old, new)
            packet[checksum_at : checksum_at + 2] = changed.to_bytes(2, "big")
