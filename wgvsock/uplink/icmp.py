"""Makes packets for the enclave from ICMP messages, for both IP versions.

Source: RFC 792 and RFC 4443. The option numbers are from linux/in.h and linux/in6.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wgvsock.checksum import internet_checksum

_UDP: Final = 17
_HOPS: Final = 64
_LONGEST_ERROR: Final = {4: 576, 6: 1280}
"""Bytes in a packet with an error, including the quoted packet (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4)."""


@dataclass(frozen=True, slots=True)
class Family:
    """The values that differ between the IP versions.

    Attributes:
        version: IP version.
        family: Address family of sockets.
        protocol: Protocol number of ICMP.
        header: Bytes in an IP header without options.
        protocol_at: Offset of the protocol number in the IP header.
        hops_at: Offset of the hop limit in the IP header.
        source: Position of the source address in the IP header.
        destination: Position of the destination address in the IP header.
        echo_request: ICMP type of an echo request.
        echo_reply: ICMP type of an echo reply.
        time_exceeded: ICMP type and code of "time exceeded in transit".
        prohibited: ICMP type and code of "administratively prohibited".
        port_unreachable: ICMP type and code of "port unreachable".
        too_big: ICMP type and code of the error that contains an MTU.
        level: Level of socket options.
        hops_option: Socket option for the hop limit.
        errors_option: Socket option that makes the kernel queue ICMP errors.
        in_sockaddr: Position of the IP address in a socket address.
    """

    version: int
    family: int
    protocol: int
    header: int
    protocol_at: int
    hops_at: int
    source: slice
    destination: slice
    echo_request: int
    echo_reply: int
    time_exceeded: tuple[int, int]
    prohibited: tuple[int, int]
    port_unreachable: tuple[int, int]
    too_big: tuple[int, int]
    level: int
    hops_option: int
    errors_option: int
    in_sockaddr: slice


FAMILIES: Final = {
    4: Family(
        version=4,
        family=socket.AF_INET,
        protocol=1,
        header=20,
        protocol_at=9,
        hops_at=8,
        source=slice(12, 16),
        destination=slice(16, 20),
        echo_request=8,
        echo_reply=0,
        time_exceeded=(11, 0),
        prohibited=(3, 13),
        port_unreachable=(3, 3),
        too_big=(3, 4),
        level=socket.IPPROTO_IP,
        hops_option=socket.IP_TTL,
        errors_option=11,  # IP_RECVERR
        in_sockaddr=slice(4, 8),
    ),
    6: Family(
        version=6,
        family=socket.AF_INET6,
        protocol=58,
        header=40,
        protocol_at=6,
        hops_at=7,
        source=slice(8, 24),
        destination=slice(24, 40),
        echo_request=128,
        echo_reply=129,
        time_exceeded=(3, 0),
        prohibited=(1, 1),
        port_unreachable=(1, 4),
        too_big=(2, 0),
        level=socket.IPPROTO_IPV6,
        hops_option=socket.IPV6_UNICAST_HOPS,
        errors_option=25,  # IPV6_RECVERR
        in_sockaddr=slice(8, 24),
    ),
}


def message_packet(family: Family, source: bytes, destination: bytes, message: bytes) -> bytes:
    """Make an IP packet with an ICMP message, and fill in the checksum.

    Args:
        family: The IP version.
        source: The source address, packed to 4 or 16 bytes.
        destination: The destination address, packed to 4 or 16 bytes.
        message: The ICMP message, whose checksum is ignored.

    Returns:
        The packet, from its IP header on.
    """
    message = message[:2] + bytes(2) + message[4:]
    pseudo = b"" if family.version == 4 else source + destination + struct.pack(">II", len(message), family.protocol)
    message = message[:2] + internet_checksum(pseudo + message).to_bytes(2, "big") + message[4:]
    return _packet(family, family.protocol, source, destination, message)


def datagram(family: Family, source: bytes, destination: bytes, ports: tuple[int, int], data: bytes) -> bytes:
    """Make an IP packet with a UDP datagram.

    Args:
        family: The IP version.
        source: The source address, packed to 4 or 16 bytes.
        destination: The destination address, packed to 4 or 16 bytes.
        ports: The source and the destination port.
        data: The datagram's data.

    Returns:
        The packet, from its IP header on.
    """
    header = struct.pack(">HHH", *ports, 8 + len(data))
    checksum = datagram_checksum(source, destination, header + bytes(2) + data) or 0xFFFF
    return _packet(family, _UDP, source, destination, header + checksum.to_bytes(2, "big") + data)


def datagram_checksum(source: bytes, destination: bytes, datagram: bytes) -> int:
    """The checksum over a UDP datagram and its pseudo-header (RFC 768, RFC 8200 section 8.1).

    Args:
        source: The source address, packed to 4 or 16 bytes.
        destination: The destination address, packed to 4 or 16 bytes.
        datagram: The datagram from its UDP header on.

    Returns:
        0 to 65535. 0 if the datagram contains its right checksum.
    """
    return internet_checksum(source + destination + struct.pack(">II", len(datagram), _UDP) + datagram)


def error_packet(family: Family, router: bytes, packet: bytes, kind: tuple[int, int], info: int = 0) -> bytes:
    """Make the packet by which a router reports an error to the sender of a packet.

    Args:
        family: The IP version.
        router: The router's address, packed to 4 or 16 bytes.
        packet: The packet that caused the error. As much of it is quoted as permitted.
        kind: ICMP type and code of the error.
        info: The word after the checksum, such as an MTU.

    Returns:
        The packet, from its IP header on.
    """
    quoted = packet[: _LONGEST_ERROR[family.version] - family.header - 8]
    message = struct.pack(">BBHI", *kind, 0, info) + quoted
    return message_packet(family, router, packet[family.source], message)


def expired(packet: memoryview, gateways: Mapping[int, bytes]) -> bytes | None:
    """Check the hop limit of a plain packet, as the first router does.

    Args:
        packet: A packet from the enclave.
        gateways: The relay's tunnel addresses, packed to 4 or 16 bytes, by IP version.

    Returns:
        The relay's error as a packet if the hop limit ends here, or None if the packet is forwarded or is for the
        relay.
    """
    family = FAMILIES[packet[0] >> 4]
    if packet[family.hops_at] > 1:
        return None
    gateway = gateways.get(family.version)
    if gateway is None or bytes(packet[family.destination]) == gateway:
        return None
    return error_packet(family, gateway, bytes(packet), family.time_exceeded)


def _packet(family: Family, protocol: int, source: bytes, destination: bytes, payload: bytes) -> bytes:
    if family.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, _HOPS) + source + destination + payload
    header = struct.pack(">BBHIBBH", 0x45, 0, 20 + len(payload), 0, _HOPS, protocol, 0) + source + destination
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + payload
