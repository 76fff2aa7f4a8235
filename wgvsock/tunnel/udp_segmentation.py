"""UDP super-packets: the headers that make one, and taking one apart where the kernel cannot.

In a UDP super-packet (virtio-net's GSO type UDP_L4) the payloads of many datagrams of one flow stand behind one set of
headers. Kernels from 6.2 on take them from a TUN; for an older one, such as the 4.14 of stock enclaves, `segments` does
what the kernel would have done.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from wgvsock.virtio_net import GSO_NONE, GSO_UDP_L4, HEADER_LENGTH, NEEDS_CSUM

_VIRTIO: Final = struct.Struct("<BBHHHH")
_WORDS: Final = {count: struct.Struct(f">{count}H").unpack_from for count in range(10, 31, 2)}
"""Readers of so many 16-bit words: IPv4 headers have 10 to 30, two IPv6 addresses 16."""

_UDP: Final = 17
_UDP_HEADER: Final = 8
_CHECKSUM_OFFSET: Final = 6


def write_super_header(buffer: memoryview, end: int, size: int) -> None:
    """Turn the headers of the datagram at the start of `buffer` into those of a super-packet.

    Args:
        buffer: A virtio-net header and a UDP datagram without IP options or extension headers.
        end: Behind the last payload, in bytes.
        size: Payload of each datagram but the last, in bytes.
    """
    transport = 20 if buffer[HEADER_LENGTH] >> 4 == 4 else 40
    _VIRTIO.pack_into(buffer, 0, NEEDS_CSUM, GSO_UDP_L4, transport + _UDP_HEADER, size, transport, _CHECKSUM_OFFSET)
    _write_lengths(buffer, end, transport)


def segments(packet: memoryview) -> Iterator[memoryview]:
    """The datagrams of a UDP super-packet, each with a virtio-net header of its own and an open checksum.

    Args:
        packet: One that `wgvsock.virtio_net.check_header` found good.

    Yields:
        Views of one buffer: each is valid until the next.
    """
    _, _, _, size, transport, _ = _VIRTIO.unpack_from(packet)
    headers = HEADER_LENGTH + transport + _UDP_HEADER
    room = memoryview(bytearray(headers + size))
    room[:headers] = packet[:headers]
    _VIRTIO.pack_into(room, 0, NEEDS_CSUM, GSO_NONE, 0, 0, transport, _CHECKSUM_OFFSET)
    for number, start in enumerate(range(headers, len(packet), size)):
        payload = packet[start : start + size]
        end = headers + len(payload)
        room[headers:end] = payload
        if room[HEADER_LENGTH] >> 4 == 4:
            identification = (packet[14] << 8 | packet[15]) + number
            room[14:16] = (identification & 0xFFFF).to_bytes(2, "big")
        _write_lengths(room, end, transport)
        yield room[:end]


def _write_lengths(buffer: memoryview, end: int, transport: int) -> None:
    """Write both lengths, the IPv4 header's checksum, and the sum of the pseudo-header (RFC 768, RFC 8200, 8.1).

    Args:
        buffer: A virtio-net header and a datagram.
        end: Behind the payload, in bytes.
        transport: Offset of the UDP header in the packet.
    """
    udp = HEADER_LENGTH + transport
    if buffer[HEADER_LENGTH] >> 4 == 4:
        buffer[12:14] = (end - HEADER_LENGTH).to_bytes(2, "big")
        buffer[20:22] = b"\0\0"
        words = _WORDS[transport // 2](buffer, HEADER_LENGTH)
        buffer[20:22] = (_folded(sum(words)) ^ 0xFFFF).to_bytes(2, "big")
        addresses = sum(words[6:10])
    else:
        buffer[14:16] = (end - HEADER_LENGTH - 40).to_bytes(2, "big")
        addresses = sum(_WORDS[16](buffer, HEADER_LENGTH + 8))
    length = end - udp
    buffer[udp + 4 : udp + 6] = length.to_bytes(2, "big")
    # An open checksum begins with the pseudo-header's sum, not complemented; the kernel adds the rest.
    buffer[udp + 6 : udp + 8] = _folded(addresses + _UDP + length).to_bytes(2, "big")


def _folded(total: int) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
