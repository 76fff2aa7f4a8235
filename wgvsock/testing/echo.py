"""A kernel's answer to an echo request, for tests without a kernel."""

from __future__ import annotations

from wgvsock.checksum import internet_checksum


def is_request(packet: bytes, headroom: int = 0) -> bool:
    """Whether this is an ICMP or ICMPv6 echo request without options or extension headers.

    Args:
        packet: The packet with its headroom.
        headroom: Bytes in front of it.
    """
    ip = packet[headroom:]
    if ip[0] >> 4 == 4:
        return ip[9] == 1 and ip[20] == 8
    return ip[6] == 58 and ip[40] == 128


def answer(request: bytes, headroom: int = 0) -> bytes:
    """The reply to an ICMP or ICMPv6 echo request without options or extension headers, as Linux makes it.

    Args:
        request: The packet with its headroom.
        headroom: Bytes in front of it.

    Returns:
        The reply, with as much headroom of zeros.
    """
    packet = bytearray(request[headroom:])
    if packet[0] >> 4 == 4:
        packet[12:20] = packet[16:20] + packet[12:16]
        packet[4:6] = b"\x12\x34"  # Linux uses a new identification ...
        packet[6:8] = bytes(2)  # ... and its own flags
        packet[10:12] = bytes(2)
        packet[10:12] = internet_checksum(bytes(packet[:20])).to_bytes(2, "big")
        start, kind, pseudo_header = 20, 0, b""
    else:
        packet[8:40] = packet[24:40] + packet[8:24]
        start, kind = 40, 129
        pseudo_header = bytes(packet[8:40]) + (len(packet) - 40).to_bytes(4, "big") + bytes([0, 0, 0, 58])
    packet[start], packet[start + 2 : start + 4] = kind, bytes(2)
    packet[start + 2 : start + 4] = internet_checksum(pseudo_header + packet[start:]).to_bytes(2, "big")
    return bytes(headroom) + packet
