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

MINIMUM_TCP_SEGMENT: Final = 8
"""Linux' smallest send MSS (TCP_MIN_SND_MSS, 48 bytes) less 40 bytes of TCP options: no kernel cuts TCP finer."""

MAXIMUM_UDP_SEGMENTS: Final = 128
"""Linux' UDP_MAX_SEGMENTS; a receiving kernel refuses more."""

MAXIMUM_IPV6_EXTENSIONS: Final = 8
"""Extension headers walked before the packet is refused; real packets have one or two."""

_FIELDS: Final = struct.Struct("<BBHHHH")
_TCP: Final = 6
_UDP: Final = 17
_CSUM_OFFSET: Final = {_TCP: 16, _UDP: 6}
_HEADER_MINIMUM: Final = {_TCP: 20, _UDP: 8}
_SKIPPED_IPV6_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options (RFC 8200, 4.1)
_GSO_PROTOCOLS: Final = {
    GSO_TCPV4: (4, _TCP),
    GSO_TCPV4 | GSO_ECN: (4, _TCP),
    GSO_TCPV6: (6, _TCP),
    GSO_TCPV6 | GSO_ECN: (6, _TCP),
    GSO_UDP_L4: (0, _UDP),  # either IP version
}


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
    if packet[:HEADER_LENGTH] == ZERO_HEADER:
        return None
    if len(packet) < HEADER_LENGTH + 20:
        return HeaderFault.TRUNCATED
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = _FIELDS.unpack_from(packet)
    if flags not in {0, NEEDS_CSUM, DATA_VALID}:
        return HeaderFault.FLAGS
    ip = packet[HEADER_LENGTH:]
    if flags != NEEDS_CSUM:
        return _check_no_checksum(gso_type, hdr_len, gso_size, csum_start, csum_offset)

    version, protocol, transport = _transport_header(ip)
    if not version:
        return HeaderFault.IP_HEADER
    header_minimum = _HEADER_MINIMUM.get(protocol)
    if header_minimum is None or csum_start != transport or csum_offset != _CSUM_OFFSET[protocol]:
        return HeaderFault.CSUM
    if transport + header_minimum > len(ip):
        return HeaderFault.CSUM
    if gso_type == GSO_NONE:
        if gso_size:
            return HeaderFault.GSO_SIZE
        return HeaderFault.HDR_LEN if hdr_len else None
    return _check_segmentation(
        ip,
        gso_type=gso_type,
        hdr_len=hdr_len,
        gso_size=gso_size,
        version=version,
        protocol=protocol,
        transport=transport,
    )


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


def _transport_header(ip: memoryview) -> tuple[int, int, int]:
    """IP version, transport protocol and offset of its header; version 0 when the IP header is not to be trusted.

    A fragment counts as such: no kernel leaves a checksum open in one.
    """
    first = ip[0]
    if first >> 4 == 4:
        header = (first & 15) * 4
        length = ip[2] << 8 | ip[3]
        fragment = ip[6] & 0x3F | ip[7]  # more-fragments bit and offset (RFC 791, section 3.1)
        if header < 20 or header > len(ip) or length != len(ip) or fragment:
            return 0, 0, 0
        return 4, ip[9], header
    if first >> 4 == 6 and len(ip) >= 40 and (ip[4] << 8 | ip[5]) + 40 == len(ip):
        protocol, offset = ip[6], 40
        for _ in range(MAXIMUM_IPV6_EXTENSIONS):
            if protocol not in _SKIPPED_IPV6_EXTENSIONS:
                return 6, protocol, offset
            if offset + 8 > len(ip):
                break
            protocol, offset = ip[offset], offset + (ip[offset + 1] + 1) * 8
    return 0, 0, 0


def _check_segmentation(
    ip: memoryview, *, gso_type: int, hdr_len: int, gso_size: int, version: int, protocol: int, transport: int
) -> HeaderFault | None:
    """A super-packet: its kind matches its headers, and cutting it gives a sane number of segments."""
    kind = _GSO_PROTOCOLS.get(gso_type)
    if kind is None or kind[0] not in {0, version} or kind[1] != protocol:
        return HeaderFault.GSO_TYPE
    headers = transport + 8
    if protocol == _TCP:
        headers = transport + (ip[transport + 12] >> 4) * 4  # data offset (RFC 9293, section 3.1)
        if headers < transport + 20 or headers > len(ip):
            return HeaderFault.IP_HEADER
    if not transport + _HEADER_MINIMUM[protocol] <= hdr_len <= len(ip):
        return HeaderFault.HDR_LEN
    payload = len(ip) - headers
    if gso_size < (MINIMUM_TCP_SEGMENT if protocol == _TCP else 1):
        return HeaderFault.GSO_SIZE
    if protocol == _UDP and payload > gso_size * MAXIMUM_UDP_SEGMENTS:
        return HeaderFault.GSO_SIZE
    return None
