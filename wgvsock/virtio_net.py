"""The virtio-net header in front of a packet, and the check that keeps a hostile peer from steering the kernel with it.

A TUN device opened with IFF_VNET_HDR puts ``struct virtio_net_hdr`` (Virtual I/O Device specification 1.2, section
5.1.6; ``linux/virtio_net.h``) in front of each packet. In the ``gso`` profile that header travels inside the
ciphertext. Ten bytes, little-endian (the TUN is told so with TUNSETVNETLE):

====== ==== ============ ======================================================================================
offset size field        meaning
====== ==== ============ ======================================================================================
0      1    flags        1 NEEDS_CSUM: the checksum at csum_start + csum_offset is still to be completed; 2 DATA_VALID
1      1    gso_type     0 none, 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP segmentation; 0x80 with TCP: ECN's CWR is set
2      2    hdr_len      bytes of headers that precede the payload, a hint
4      2    gso_size     payload bytes of one segment
6      2    csum_start   offset into the packet of the first byte that the checksum covers
8      2    csum_offset  offset from csum_start of the checksum
====== ==== ============ ======================================================================================

What the sender's kernel writes is narrow: transport checksums of TCP and UDP, segmentation of TCP and UDP. What the
fields can express is wide, and the kernel completes a checksum *after* the firewall has looked at the packet: a header
that names another place would let an authenticated peer rewrite its own source address or port behind the filter.
So everything is refused but what a kernel writes, field by field, against the IP header that follows.
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
"""A gso_size that Linux takes for an instruction, not for a size; recent kernels refuse it, older ones obey."""

MINIMUM_TCP_SEGMENT: Final = 8
"""Linux' smallest send MSS (TCP_MIN_SND_MSS, 48 bytes) less 40 bytes of TCP options: no kernel cuts TCP finer."""

MAXIMUM_UDP_SEGMENTS: Final = 128
"""Linux' UDP_MAX_SEGMENTS; a receiving kernel refuses more."""

MAXIMUM_IPV6_EXTENSIONS: Final = 8
"""Extension headers walked before the packet is refused; real packets have one or two."""

_FIELDS: Final = struct.Struct("<BBHHHHBxBBxxHxB").unpack_from
"""The six fields, then of an IPv4 header: version and IHL, both bytes of the length, fragment word, protocol."""

_FRAGMENT_MASK: Final = 0xFF3F
"""More-fragments bit and offset (RFC 791, section 3.1) of the fragment word, as little-endian `_FIELDS` reads it."""

_TCP: Final = 6
_UDP: Final = 17
_CSUM_OFFSET: Final = {_TCP: 16, _UDP: 6}
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
"""Kind of segmentation and IP version to transport protocol."""


class HeaderFault(StrEnum):
    """Why a header is refused; the value is the word that statistics count it under."""

    TRUNCATED = "virtio-truncated"
    FLAGS = "virtio-flags"
    GSO_TYPE = "virtio-gso-type"
    GSO_SIZE = "virtio-gso-size"
    HDR_LEN = "virtio-hdr-len"
    CSUM = "virtio-csum"
    IP_HEADER = "virtio-ip-header"


def check_header(packet: memoryview) -> HeaderFault | None:
    """Tell whether a kernel may be given this packet: None, or what is wrong with its virtio-net header.

    Args:
        packet: The 10-byte header and one IP packet, without padding behind it.
    """
    if len(packet) < HEADER_LENGTH + 20:
        return None if packet[:HEADER_LENGTH] == ZERO_HEADER else HeaderFault.TRUNCATED
    # One look at all fields, those of an IPv4 header among them: this runs for every packet.
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
        # A fragment is as bad as a wrong length: no kernel leaves a checksum open in one.
        transport = (first & 15) * 4
        if not 20 <= transport <= length or high << 8 | low != length or fragment & _FRAGMENT_MASK:
            return HeaderFault.IP_HEADER
    else:
        protocol, transport = _ipv6_transport(packet[HEADER_LENGTH:])
        if not transport:
            return HeaderFault.IP_HEADER
    if csum_start != transport or csum_offset != _CSUM_OFFSET.get(protocol):
        return HeaderFault.CSUM
    if transport + _HEADER_MINIMUM[protocol] > length:
        return HeaderFault.CSUM
    if gso_type == GSO_NONE:
        if gso_size:
            return HeaderFault.GSO_SIZE
        return HeaderFault.HDR_LEN if hdr_len else None
    if _GSO_PROTOCOLS.get((gso_type, first >> 4)) != protocol:
        return HeaderFault.GSO_TYPE
    if not transport + _HEADER_MINIMUM[protocol] <= hdr_len <= length:
        return HeaderFault.HDR_LEN
    return _check_segments(packet[HEADER_LENGTH + transport :], gso_size, protocol)


def _check_no_checksum(
    gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int
) -> HeaderFault | None:
    """Without NEEDS_CSUM every other field is zero: segmenting always leaves checksums open."""
    if gso_type:
        return HeaderFault.GSO_TYPE
    if gso_size:
        return HeaderFault.GSO_SIZE
    if hdr_len:
        return HeaderFault.HDR_LEN
    return HeaderFault.CSUM if csum_start or csum_offset else None


def _ipv6_transport(ip: memoryview) -> tuple[int, int]:
    """Transport protocol and offset of its header; offset 0 when this is no IPv6 header to be trusted."""
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


def _check_segments(segment: memoryview, gso_size: int, protocol: int) -> HeaderFault | None:
    """Cutting the payload gives a sane number of segments."""
    if gso_size == GSO_BY_FRAGS:
        return HeaderFault.GSO_SIZE
    if protocol == _UDP:
        too_many = len(segment) - 8 > gso_size * MAXIMUM_UDP_SEGMENTS
        return HeaderFault.GSO_SIZE if too_many or not gso_size else None
    if not 20 <= (segment[12] >> 4) * 4 <= len(segment):  # data offset (RFC 9293, section 3.1)
        return HeaderFault.IP_HEADER
    return HeaderFault.GSO_SIZE if gso_size < MINIMUM_TCP_SEGMENT else None
