"""Packets as a capture file that Wireshark reads. Only bytes, no I/O.

The format is that of draft-ietf-opsawg-pcap, with nanoseconds. Every record is a bare IP packet (LINKTYPE_RAW).
WireGuard messages that travel on a stream get UDP and IPv4 headers, so that Wireshark's own dissector recognises them.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.checksum import internet_checksum

SNAP_LENGTH: Final = 1 << 18
"""Bytes to keep of one packet. Super-packets have 64 KiB."""

_MAGIC_NANOSECONDS: Final = 0xA1B23C4D
_LINKTYPE_RAW: Final = 101
_HEADER: Final = struct.Struct("<IHHiIII")
_RECORD: Final = struct.Struct("<IIII")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_UDP_PROTOCOL: Final = 17
_MAX_LENGTH: Final = 0xFFFF

FILE_HEADER: Final = _HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAP_LENGTH, _LINKTYPE_RAW)
RECORD_HEADER_SIZE: Final = _RECORD.size


def record(time_ns: int, packet: bytes | memoryview) -> bytes:
    """Encode one packet as a record.

    Args:
        time_ns: Unix time in nanoseconds.
        packet: An IP packet. At most `SNAP_LENGTH` bytes are kept.
    """
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    kept = bytes(packet[:SNAP_LENGTH])
    return _RECORD.pack(seconds, nanoseconds, len(kept), len(packet)) + kept


def record_size(header: bytes) -> int:
    """Number of packet bytes that follow a record's header of `RECORD_HEADER_SIZE` bytes."""
    size: int = _RECORD.unpack(header)[2]
    return size


def as_udp(datagram: bytes | memoryview, source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    """Wrap a WireGuard message as if it had travelled over UDP.

    Args:
        datagram: The message.
        source: IPv4 address, 4 bytes, and port.
        destination: IPv4 address, 4 bytes, and port.

    Returns:
        An IPv4 packet.
    """
    udp_length = min(_UDP.size + len(datagram), _MAX_LENGTH)
    total = min(_IPV4.size + udp_length, _MAX_LENGTH)
    fields = (0x45, 0, total, 0, 0, 64, _UDP_PROTOCOL)
    checksum = internet_checksum(_IPV4.pack(*fields, 0, source[0], destination[0]))
    ip = _IPV4.pack(*fields, checksum, source[0], destination[0])
    # No UDP checksum: IPv4 allows that (RFC 768), and the packet only goes to a file.
    return ip + _UDP.pack(source[1] & _MAX_LENGTH, destination[1] & _MAX_LENGTH, udp_length, 0) + bytes(datagram)
