"""Super-packets: writes the headers of one, and splits one if the kernel cannot or must not do it.

In a super-packet (virtio-net's GSO), one set of headers precedes the payloads of many segments of one flow. `segments`
splits it as a kernel would. That is needed for a kernel that does not know the UDP kind (before 6.2, such as the 4.14
of stock enclaves), for one that refuses some of the TCP kind (6.6.44, 6.10.3), and for super-packets whose segments are
too small for the far end to accept them whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from wgvsock.virtio_net import CHECKSUM_OFFSET, GSO_NONE, GSO_UDP_L4, HEADER_LENGTH, NEEDS_CSUM

_VIRTIO: Final = struct.Struct("<BBHHHH")
_WORDS: Final = {count: struct.Struct(f">{count}H").unpack_from for count in range(10, 31, 2)}
"""Readers by number of 16-bit words: IPv4 headers have 10 to 30, two IPv6 addresses 16."""

_SEQUENCE: Final = struct.Struct(">I")

_TCP: Final = 6
_UDP: Final = 17
_UDP_HEADER: Final = 8

_FIN: Final = 0x01
_PSH: Final = 0x08
_CWR: Final = 0x80
"""TCP flags (RFC 9293, section 3.1) that not every segment has: only the last one FIN and PSH, only the first CWR."""


def write_super_header(buffer: memoryview, end: int, size: int) -> None:
    """Turn the headers of the datagram at the start of `buffer` into those of a super-packet.

    Args:
        buffer: A virtio-net header and a UDP datagram without IP options or extension headers.
        end: Offset of the end of the last payload, in bytes.
        size: Payload of each datagram but the last, in bytes.
    """
    transport = 20 if buffer[HEADER_LENGTH] >> 4 == 4 else 40
    headers = transport + _UDP_HEADER
    _VIRTIO.pack_into(buffer, 0, NEEDS_CSUM, GSO_UDP_L4, headers, size, transport, CHECKSUM_OFFSET[_UDP])
    _write_lengths(buffer, end, transport, _UDP)


def segments(packet: memoryview) -> Iterator[memoryview]:
    """Split a super-packet into packets, each with its own virtio-net header and an incomplete checksum.

    Args:
        packet: A super-packet from our own kernel, or one that `wgvsock.virtio_net.check_header` accepted.

    Yields:
        Views of one buffer: each is valid until the next.
    """
    _, gso_type, _, size, transport, _ = _VIRTIO.unpack_from(packet)
    size = size or len(packet)
    protocol = _UDP if gso_type == GSO_UDP_L4 else _TCP
    start_of_transport = HEADER_LENGTH + transport
    length = _UDP_HEADER if protocol == _UDP else (packet[start_of_transport + 12] >> 4) * 4
    headers = start_of_transport + length
    room = memoryview(bytearray(headers + size))
    room[:headers] = packet[:headers]
    _VIRTIO.pack_into(room, 0, NEEDS_CSUM, GSO_NONE, 0, 0, transport, CHECKSUM_OFFSET[protocol])
    for number, start in enumerate(range(headers, max(headers + 1, len(packet)), size)):
        payload = packet[start : start + size]
        end = headers + len(payload)
        room[headers:end] = payload
        if room[HEADER_LENGTH] >> 4 == 4:
            identification = (packet[14] << 8 | packet[15]) + number
            room[14:16] = (identification & 0xFFFF).to_bytes(2, "big")
        if protocol == _TCP:
            tcp = packet[start_of_transport:headers]
            _write_tcp(room[start_of_transport:], tcp, start - headers, is_last=start + size >= len(packet))
        _write_lengths(room, end, transport, protocol)
        yield room[:end]


def _write_tcp(header: memoryview, whole: memoryview, offset: int, *, is_last: bool) -> None:
    """Write sequence number and flags of one segment.

    Args:
        header: The segment, beginning with its TCP header.
        whole: The super-packet's TCP header.
        offset: Offset of the segment's payload in the super-packet's, in bytes.
        is_last: Whether it is the last segment.
    """
    (sequence,) = _SEQUENCE.unpack_from(whole, 4)
    _SEQUENCE.pack_into(header, 4, (sequence + offset) & 0xFFFFFFFF)
    flags = whole[13]
    if not is_last:
        flags &= ~(_FIN | _PSH)
    if offset:
        flags &= ~_CWR
    header[13] = flags


def _write_lengths(buffer: memoryview, end: int, transport: int, protocol: int) -> None:
    """Write the lengths, the IPv4 header's checksum, and the sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).

    Args:
        buffer: A virtio-net header and a packet.
        end: Offset of the end of the payload, in bytes.
        transport: Offset of the transport header in the packet.
        protocol: TCP's or UDP's number.
    """
    start = HEADER_LENGTH + transport
    if buffer[HEADER_LENGTH] >> 4 == 4:
        buffer[12:14] = (end - HEADER_LENGTH).to_bytes(2, "big")
        buffer[20:22] = b"\0\0"
        words = _WORDS[transport // 2](buffer, HEADER_LENGTH)
        buffer[20:22] = (_folded(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
        addresses = sum(words[6:10])
    else:
        buffer[14:16] = (end - HEADER_LENGTH - 40).to_bytes(2, "big")
        addresses = sum(_WORDS[16](buffer, HEADER_LENGTH + 8))
    length = end - start
    if protocol == _UDP:
        buffer[start + 4 : start + 6] = length.to_bytes(2, "big")
    # An incomplete checksum starts as the pseudo-header's sum, not complemented. The kernel adds the rest.
    checksum = start + CHECKSUM_OFFSET[protocol]
    buffer[checksum : checksum + 2] = _folded(addresses + protocol + length).to_bytes(2, "big")


def _folded(total: int) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
