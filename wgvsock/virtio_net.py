"""The virtio-net header in front of a packet, and the check that stops a hostile peer from abusing it.

A TUN device opened with IFF_VNET_HDR puts ``struct virtio_net_hdr`` (Virtual I/O Device specification 1.2, section
5.1.6; ``linux/virtio_net.h``) in front of each packet. In the ``gso`` profile that header travels inside the
ciphertext. It has ten bytes, little-endian (TUNSETVNETLE makes the TUN use that order):

====== ==== ============ ======================================================================================
offset size field        meaning
====== ==== ============ ======================================================================================
0      1    flags        1 NEEDS_CSUM: the checksum at csum_start + csum_offset is still to be completed; 2 DATA_VALID
1      1    gso_type     0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP segmentation; 0x80 with TCP: ECN's CWR is set
2      2    hdr_len      bytes of headers before the payload, a hint
4      2    gso_size     payload bytes of one segment
6      2    csum_start   offset into the packet of the first byte that the checksum covers
8      2    csum_offset  offset from csum_start of the checksum
====== ==== ============ ======================================================================================

The sender's kernel uses only a few of the possible values: transport checksums and segmentation of TCP and UDP. The
fields can express far more, and the kernel completes a checksum *after* the firewall has inspected the packet. A header
that points elsewhere would let an authenticated peer rewrite its own source address or port behind the filter.
Each field is therefore checked against the IP header that follows, and everything that no kernel writes is refused.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

HEADER_LENGTH: Final = 10
ZERO_HEADER: Final = bytes(HEADER_LENGTH)
"""A plain packet: no segmentation, checksums complete."""

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

GSO_BY_FRAGS: Final = 0xFFFF
"""A gso_size that Linux reads as an instruction, not as a size. Recent kernels refuse it, older ones obey it."""

MINIMUM_TCP_SEGMENT: Final = 536
"""The default MSS (RFC 9293, section 3.7.1). The longest super-packet becomes at most 123 packets, and a short one
cannot become a flood of tiny ones. A kernel cuts finer where an application or a path asks for it: see
`is_cut_too_fine`."""

MAXIMUM_UDP_SEGMENTS: Final = 64
"""Datagrams in one super-packet, and in one call with UDP_SEGMENT. This is Linux's UDP_MAX_SEGMENTS up to 6.8, so no
kernel refuses it. Later kernels accept 128. Datagrams may be short, so their number is the bound."""

MAXIMUM_IPV6_EXTENSIONS: Final = 8
"""Extension headers walked before the packet is refused. Real packets have one or two."""

_FIELDS: Final = struct.Struct("<BBHHHHBxBBxxHxB").unpack_from
"""The six fields, then from an IPv4 header: version and IHL, both bytes of the length, fragment word, protocol."""

_VIRTIO: Final = struct.Struct("<BBHHHH").unpack_from
"""Only the six fields."""

_FRAGMENT_MASK: Final = 0xFF3F
"""More-fragments bit and offset in the fragment word (RFC 791, section 3.1), as `_FIELDS` reads it: little-endian."""

_TCP: Final = 6
_UDP: Final = 17
CHECKSUM_OFFSET: Final = {_TCP: 16, _UDP: 6}
"""Offset of the checksum in a transport header, by IP protocol (RFC 9293, RFC 768)."""
_HEADER_MINIMUM: Final = {_TCP: 20, _UDP: 8}
_SKIPPED_IPV6_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options (RFC 8200, 4.1)
_GSO_PROTOCOLS: Final = {
    (GSO_TCPV4, 4): _TCP,
    (GSO_TCPV4 | GSO_ECN, 4): _TCP,
    (GSO_TCPV6, 6): _TCP,
    (GSO_TCPV6 | GSO_ECN, 6): _TCP,
    (GSO_UDP_L4, 4): _UDP,
    (GSO_UDP_L4, 6): _UDP,
}
"""Transport protocol by kind of segmentation and IP version."""


class HeaderFault(StrEnum):
    """Why a header is refused. The value is the drop reason that statistics count it under."""

    TRUNCATED = "virtio_truncated"
    FLAGS = "virtio_flags"
    GSO_TYPE = "virtio_gso_type"
    GSO_SIZE = "virtio_gso_size"
    HDR_LEN = "virtio_hdr_len"
    CSUM = "virtio_csum"
    IP_HEADER = "virtio_ip_header"


def check_header(packet: memoryview) -> HeaderFault | None:
    """Check the virtio-net header of a packet that a kernel is about to be given.

    Args:
        packet: The 10-byte header and one IP packet, without padding after it.

    Returns:
        None if the kernel may have the packet, otherwise what is wrong with its header.
    """
    if len(packet) < HEADER_LENGTH + 20:
        return None if packet[:HEADER_LENGTH] == ZERO_HEADER else HeaderFault.TRUNCATED
    # Unpack all fields at once, those of an IPv4 header included: this runs for every packet.
    (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, first, high, low, fragment, protocol) = _FIELDS(
        packet
    )
    if flags != NEEDS_CSUM:
        if flags not in {0, DATA_VALID}:
            return HeaderFault.FLAGS
        if not gso_type | hdr_len | gso_size | csum_start | csum_offset:
            return None
        return _check_no_checksum(gso_type, hdr_len, gso_size, csum_start, csum_offset)
    length = len(packet) - HEADER_LENGTH
    if first >> 4 == 4:
        # A fragment is as bad as a wrong length: no kernel leaves the checksum of one incomplete.
        transport = (first & 15) * 4
        if not 20 <= transport <= length or high << 8 | low != length or fragment & _FRAGMENT_MASK:
            return HeaderFault.IP_HEADER
    else:
        protocol, transport = _ipv6_transport(packet[HEADER_LENGTH:])
        if not transport:
            return HeaderFault.IP_HEADER
    if csum_start != transport or csum_offset != CHECKSUM_OFFSET.get(protocol):
        return HeaderFault.CSUM
    headers = transport + _HEADER_MINIMUM[protocol]
    if headers > length:
        return HeaderFault.CSUM
    if gso_type == GSO_NONE:
        if gso_size:
            return HeaderFault.GSO_SIZE
        return HeaderFault.HDR_LEN if hdr_len else None
    if _GSO_PROTOCOLS.get((gso_type, first >> 4)) != protocol:
        return HeaderFault.GSO_TYPE
    if not headers <= hdr_len <= length:
        return HeaderFault.HDR_LEN
    return _check_segments(packet, HEADER_LENGTH + transport, gso_size, protocol)


def is_cut_too_fine(packet: memoryview) -> bool:
    """Whether `check_header` would refuse a super-packet of our own kernel for the size of its segments.

    A connection with a small MSS makes such packets, and so does a program that sends more datagrams at once than
    older kernels support. They have to travel one by one.

    Args:
        packet: A packet with a 10-byte virtio-net header whose GSO type is not 0.
    """
    _, gso_type, _, gso_size, csum_start, _ = _VIRTIO(packet)
    if gso_type == GSO_UDP_L4:
        return _too_many_datagrams(len(packet) - HEADER_LENGTH - csum_start, gso_size)
    return bool(gso_size < MINIMUM_TCP_SEGMENT)


def _too_many_datagrams(length: int, gso_size: int) -> bool:
    """Whether a UDP header and payload of `length` bytes become more than `MAXIMUM_UDP_SEGMENTS`."""
    return length - _HEADER_MINIMUM[_UDP] > gso_size * MAXIMUM_UDP_SEGMENTS


def _check_no_checksum(
    gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int
) -> HeaderFault | None:
    """Without NEEDS_CSUM every other field must be zero: segmentation always leaves checksums incomplete."""
    if gso_type:
        return HeaderFault.GSO_TYPE
    if gso_size:
        return HeaderFault.GSO_SIZE
    if hdr_len:
        return HeaderFault.HDR_LEN
    return HeaderFault.CSUM if csum_start or csum_offset else None


def _ipv6_transport(ip: memoryview) -> tuple[int, int]:
    """Transport protocol and offset of its header. The offset is 0 if the IPv6 header cannot be trusted."""
    if ip[0] >> 4 != 6 or len(ip) < 40 or (ip[4] << 8 | ip[5]) + 40 != len(ip):
        return 0, 0
    protocol, offset = ip[6], 40
    for _ in range(MAXIMUM_IPV6_EXTENSIONS):
        if protocol not in _SKIPPED_IPV6_EXTENSIONS:
            return protocol, offset
        if offset + 8 > len(ip):
            break
        protocol, offset = ip[offset], offset + (ip[offset + 1] + 1) * 8
    return 0, 0


def _check_segments(packet: memoryview, start: int, gso_size: int, protocol: int) -> HeaderFault | None:
    """Check that segmenting the payload behind the transport header at `start` gives a sane number of segments."""
    if gso_size == GSO_BY_FRAGS:
        return HeaderFault.GSO_SIZE
    length = len(packet) - start
    if protocol == _UDP:
        too_many = _too_many_datagrams(length, gso_size)
        return HeaderFault.GSO_SIZE if too_many or not gso_size else None
    if not 20 <= (packet[start + 12] >> 4) * 4 <= length:  # data offset (RFC 9293, section 3.1)
        return HeaderFault.IP_HEADER
    return HeaderFault.GSO_SIZE if gso_size < MINIMUM_TCP_SEGMENT else None
