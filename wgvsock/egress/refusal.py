"""The answer to a refused packet, which its sender gets at once instead of a time-out.

The relay's packet filter gives the same answers: a reset to a new connection, and the ICMP error "administratively
prohibited" to everything else. The answer claims to come from the destination. The enclave's routes to that address
lead into the tunnel, so reverse path filtering accepts the answer.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.checksum import internet_checksum
from wgvsock.egress.policy import ICMP, TCP
from wgvsock.egress.reading import ACK, RST, Reading

_HOPS: Final = 64
_UNREACHABLE: Final = {4: bytes([3, 13]), 6: bytes([1, 1])}
"""Type and code: communication administratively prohibited (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1)."""
_QUOTE: Final = {4: 576 - 20 - 8, 6: 1280 - 40 - 8}
"""Bytes of the refused packet that are quoted (RFC 1812, section 4.3.2.3; RFC 4443, section 3.1)."""


def refusal(reading: Reading, ip: memoryview) -> bytes | None:
    """Build the answer to a refused packet.

    Three kinds of packets get no answer: those to several hosts (RFC 1122, section 3.2.2; RFC 4443, section 2.4), ICMP
    messages other than echo requests, and segments within a TCP connection. A segment whose flow was merely forgotten
    is sent again.

    Args:
        reading: The parsed packet.
        ip: The refused packet, from its IP header on.

    Returns:
        The answer, from its IP header on, or None if there is none.
    """
    source, destination = reading.source, reading.destination
    if reading.is_later or not (_is_one_host(source) and _is_one_host(destination)):
        return None
    if reading.protocol == TCP:
        return _packet(destination, source, TCP, _reset(reading, ip)) if reading.begins_connection else None
    version = destination.version
    if reading.protocol == ICMP[version] and reading.packet.kind is None:
        return None
    quote = bytes(ip[: _QUOTE[version]])
    return _packet(destination, source, ICMP[version], _UNREACHABLE[version] + bytes(6) + quote)


def _is_one_host(address: IpAddress) -> bool:
    is_broadcast = address.version == 4 and address.packed == b"\xff\xff\xff\xff"
    return not (address.is_multicast or address.is_unspecified or address.is_loopback or is_broadcast)


def _reset(reading: Reading, ip: memoryview) -> bytes:
    """A reset for a SYN (RFC 9293, section 3.10.7.1). It acknowledges the SYN and any data in the segment."""
    tcp = ip[reading.transport :]
    source_port, destination_port, sequence = struct.unpack_from("!HHI", tcp)
    acknowledged = (sequence + 1 + max(0, len(tcp) - (tcp[12] >> 4) * 4)) & 0xFFFFFFFF
    return struct.pack("!HHIIBBHHH", destination_port, source_port, 0, acknowledged, 5 << 4, RST | ACK, 0, 0, 0)


_CHECKSUM_AT: Final = {TCP: 16, ICMP[4]: 2, ICMP[6]: 2}


def _packet(source: IpAddress, destination: IpAddress, protocol: int, message: bytes) -> bytes:
    addresses = source.packed + destination.packed
    pseudo = b"" if protocol == ICMP[4] else addresses + struct.pack("!II", len(message), protocol)
    at = _CHECKSUM_AT[protocol]
    message = message[:at] + _checksum(pseudo + message) + message[at + 2 :]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(message), protocol, _HOPS) + addresses + message
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0x4000, _HOPS, protocol, 0) + addresses
    return header[:10] + _checksum(header) + header[12:] + message


def _checksum(data: bytes) -> bytes:
    return internet_checksum(data).to_bytes(2, "big")
