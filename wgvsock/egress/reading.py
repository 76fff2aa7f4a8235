"""Parses IP packets from the enclave's kernel without trusting them.

A program with CAP_NET_RAW can send any bytes, so a packet is parsed completely or not at all. A packet has no reading
if it is truncated, if its lengths disagree, or if it may be routed elsewhere than to its destination (IPv4 options,
IPv6 routing headers). The gate refuses a packet without a reading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.policy import ECHO_REQUEST, ICMP, TCP, UDP, Packet

ECHO_REPLY: Final = {4: 0, 6: 129}
"""ICMP type by IP version."""
ICMP_ERRORS: Final = {4: frozenset({3, 11, 12}), 6: frozenset({1, 2, 3, 4})}
"""Types of messages that quote the packet that caused them (RFC 792; RFC 4443, section 2.1)."""

SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10
"""TCP flags (RFC 9293, section 3.1)."""

_PLAIN_IPV4: Final = 0x45
"""Version 4 and a header of five words, which means no options."""
_MORE_FRAGMENTS: Final = 0x2000
_OFFSET: Final = 0x1FFF
_HOP_BY_HOP: Final = 0
_FRAGMENT: Final = 44
_DESTINATION_OPTIONS: Final = 60
_ROUTING: Final = 43
_MAX_EXTENSIONS: Final = 8
"""Extension headers followed before the packet is rejected. Real packets have one or two."""

_HEADER: Final = {TCP: 20, UDP: 8, ICMP[4]: 8, ICMP[6]: 8}
"""Bytes of a transport header without options. A first fragment has to contain all of it (RFC 1858, section 3)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A parsed packet.

    Attributes:
        source: Source address.
        destination: Destination address.
        protocol: IP protocol number; for IPv6, the one after the extension headers.
        transport: Offset of the transport header in the packet, in bytes.
        flow: The source and destination addresses (4 or 16 bytes each), followed by the source and destination ports (2
            bytes each), as they are in the packet. ICMP echo messages have their identifier (2 bytes) in place of the
            ports. Other packets have the addresses only.
        port: Destination port for TCP and UDP, or the ICMP type.
        flags: TCP flags; 0 for other protocols.
        datagram: Identifies the datagram that a fragment belongs to; empty if the packet is not a fragment.
        is_later: Whether it is a fragment other than the first, and so has no transport header.
    """

    source: IpAddress
    destination: IpAddress
    protocol: int
    transport: int
    flow: bytes
    port: int = 0
    flags: int = 0
    datagram: bytes = b""
    is_later: bool = False

    @property
    def packet(self) -> Packet:
        """The part of the packet that a policy judges."""
        return Packet(self.destination, self.protocol, self.port)

    @property
    def begins_connection(self) -> bool:
        """Whether it is a SYN without an ACK."""
        return self.protocol == TCP and self.flags & (SYN | ACK) == SYN

    @property
    def is_error(self) -> bool:
        """Whether it is an ICMP error about a packet that was received."""
        version = self.destination.version
        return self.protocol == ICMP[version] and self.port in ICMP_ERRORS[version] and not self.is_later


def read(ip: memoryview) -> Reading | None:
    """Parse a packet.

    Args:
        ip: The packet from its IP header to its end, without headroom or padding.

    Returns:
        The parsed packet, or None if it is malformed or may be routed elsewhere than to its destination.
    """
    if len(ip) < 20:
        return None
    if ip[0] == _PLAIN_IPV4:
        return _read_ipv4(ip)
    return _read_ipv6(ip) if ip[0] >> 4 == 6 else None


def _read_ipv4(ip: memoryview) -> Reading | None:
    if int.from_bytes(ip[2:4], "big") != len(ip):
        return None
    fragment = int.from_bytes(ip[6:8], "big")
    addresses = bytes(ip[12:20])
    datagram = b""
    if fragment & (_MORE_FRAGMENTS | _OFFSET):
        datagram = addresses + bytes(ip[9:10]) + bytes(ip[4:6])
    ends = IPv4Address(addresses[:4]), IPv4Address(addresses[4:])
    reading = Reading(*ends, ip[9], 20, addresses, datagram=datagram, is_later=bool(fragment & _OFFSET))
    return reading if reading.is_later else _with_transport(reading, ip)


def _read_ipv6(ip: memoryview) -> Reading | None:
    if len(ip) < 40 or int.from_bytes(ip[4:6], "big") + 40 != len(ip):
        return None
    addresses = bytes(ip[8:40])
    ends = IPv6Address(addresses[:16]), IPv6Address(addresses[16:])
    protocol, offset, datagram = ip[6], 40, b""
    for _ in range(_MAX_EXTENSIONS):
        if protocol == _ROUTING:
            return None
        if protocol not in {_HOP_BY_HOP, _DESTINATION_OPTIONS, _FRAGMENT}:
            return _with_transport(Reading(*ends, protocol, offset, addresses, datagram=datagram), ip)
        if offset + 8 > len(ip):
            return None
        if protocol == _FRAGMENT:
            if datagram:
                return None
            datagram = addresses + bytes(ip[offset + 4 : offset + 8])
            if int.from_bytes(ip[offset + 2 : offset + 4], "big") >> 3:
                return Reading(*ends, ip[offset], offset + 8, addresses, datagram=datagram, is_later=True)
            length = 8
        else:
            length = (ip[offset + 1] + 1) * 8
        protocol, offset = ip[offset], offset + length
    return None


def _with_transport(reading: Reading, ip: memoryview) -> Reading | None:
    """Complete a reading of the IP headers with the transport header, or None if that header is truncated."""
    protocol, at, version = reading.protocol, reading.transport, reading.destination.version
    if at + _HEADER.get(protocol, 0) > len(ip):
        return None
    if protocol in {TCP, UDP}:
        return replace(
            reading,
            flow=reading.flow + bytes(ip[at : at + 4]),
            port=int.from_bytes(ip[at + 2 : at + 4], "big"),
            flags=ip[at + 13] if protocol == TCP else 0,
        )
    if protocol == ICMP[version]:
        is_echo = ip[at] in {ECHO_REQUEST[version], ECHO_REPLY[version]}
        return replace(reading, flow=reading.flow + bytes(ip[at + 4 : at + 6] if is_echo else b""), port=ip[at])
    return reading


def reversed_flow(flow: bytes) -> bytes:
    """The same flow as its other end sees it. See `Reading.flow`."""
    size = 16 if len(flow) >= 32 else 4
    source, destination, ports = flow[:size], flow[size : 2 * size], flow[2 * size :]
    return destination + source + (ports[2:] + ports[:2] if len(ports) == 4 else ports)


def quoted(reading: Reading, ip: memoryview) -> tuple[int, bytes] | None:
    """Find the flow that an ICMP error is about.

    Args:
        reading: The parsed error.
        ip: The error, from its IP header on.

    Returns:
        The protocol and the flow as the enclave would send it (see `Reading.flow`), or None if the quoted packet does
        not show it.
    """
    inner = ip[reading.transport + 8 :]
    if len(inner) < 20:
        return None
    if inner[0] == _PLAIN_IPV4 and not int.from_bytes(inner[6:8], "big") & _OFFSET:
        protocol, flow, size = inner[9], bytes(inner[12:24]), 12
    elif inner[0] >> 4 == 6:
        protocol, flow, size = inner[6], bytes(inner[8:44]), 36
    else:
        return None
    if len(flow) < size or protocol not in {TCP, UDP}:
        return None
    answer = reversed_flow(flow)
    # An error goes to the sender of the quoted packet, so both packets have the same two ends.
    return (protocol, answer) if answer[: size - 4] == reading.flow else None
