"""Selects the packets from an enclave that the stack gets, and completes their checksums."""

from __future__ import annotations

from typing import Final

from wgvsock.checksum import internet_checksum

_PLAIN_IPV4: Final = 0x45
_IPV6_HEADER: Final = 40
_FRAGMENTED: Final = 0x3FFF
"""More-fragments bit and offset (RFC 791, section 3.1)."""
_ICMP: Final = 1
_ICMPV6: Final = 58
_LEAST: Final = {_ICMP: 8, 6: 20, 17: 8, _ICMPV6: 8}
"""Bytes in a transport header without options, by protocol."""


def is_plain(packet: memoryview) -> bool:
    """Whether a packet is an unfragmented TCP, UDP or ICMP packet without IP options or extension headers.

    The stack gets only such packets. Its reassembly follows pointers that it stores in the fragments themselves. With
    libslirp 4.7, fuzz/fuzz_uplink.py made it write to an address taken from two port numbers within seconds.
    """
    length = len(packet)
    if packet[0] == _PLAIN_IPV4:
        is_fragment = int.from_bytes(packet[6:8], "big") & _FRAGMENTED
        whole, headers, protocol = int.from_bytes(packet[2:4], "big"), 20, packet[9]
        if is_fragment or protocol == _ICMPV6:
            return False
    elif packet[0] >> 4 == 6 and length >= _IPV6_HEADER:
        whole, headers, protocol = int.from_bytes(packet[4:6], "big") + _IPV6_HEADER, _IPV6_HEADER, packet[6]
        if protocol == _ICMP:
            return False
    else:
        return False
    return whole == length and protocol in _LEAST and length >= headers + _LEAST[protocol]


def complete_checksum(packet: memoryview, start: int, offset: int) -> None:
    """Complete a partial checksum, as a network interface does (virtio 1.2, section 5.1.6.2).

    Args:
        packet: An IP packet, which is modified in place. If the checksum lies outside it, nothing happens.
        start: Offset in the packet of the first byte that the checksum covers, in bytes.
        offset: Offset of the checksum from `start`, in bytes.
    """
    at = start + offset
    if at + 2 > len(packet):
        return
    packet[at : at + 2] = (internet_checksum(packet[start:]) or 0xFFFF).to_bytes(2, "big")
