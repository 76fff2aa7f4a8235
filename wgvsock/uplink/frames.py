"""Ethernet framing for libslirp, because there is no Ethernet between an enclave and its relay.

The enclave is presented as one Ethernet station. The station announces each of its IP addresses at the start (ARP, RFC
826; neighbour discovery, RFC 4861), and answers whenever libslirp asks. No packet has to wait for address resolution.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.checksum import internet_checksum

HEADER: Final = 14
"""Bytes in an Ethernet header."""

STATION: Final = b"\x02wgvs\x02"
"""The enclave's Ethernet address, which is locally administered."""
ROUTER: Final = b"\x52\x56\x00\x00\x00\x02"
"""The Ethernet address that the enclave's packets go to. libslirp checks it only for multicasts."""

ARP: Final = b"\x08\x06"
IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"

TO_ROUTER: Final = {4: ROUTER + STATION + IPV4, 6: ROUTER + STATION + IPV6}
"""The Ethernet header in front of a packet from the enclave, by IP version."""

_EVERYBODY: Final = b"\xff" * 6
_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")
_REQUEST: Final = 1
_REPLY: Final = 2
_ICMPV6: Final = 58
_SOLICITATION: Final = 135
_ADVERTISEMENT: Final = 136
_ROUTER_ADVERTISEMENT: Final = 134
_SOLICITED_OVERRIDE: Final = 0x60000000
_TARGET_LINK_LAYER_ADDRESS: Final = b"\x02\x01"
_ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"


def introduction(address: IpAddress) -> bytes:
    """The frame that announces one of the enclave's addresses to libslirp."""
    if address.version == 4:
        arp = _ARP.pack(1, 0x0800, 6, 4, _REQUEST, STATION, address.packed, _EVERYBODY, address.packed)
        return _EVERYBODY + STATION + ARP + arp
    return _advertisement(address.packed, _ALL_NODES)


def answer(frame: bytes, own: frozenset[bytes]) -> bytes | None:
    """Answer an ARP request or a neighbour solicitation from libslirp.

    Args:
        frame: A frame from libslirp; at least its first 128 bytes.
        own: The enclave's addresses, packed to 4 or 16 bytes.

    Returns:
        The answer as a frame, or None if the frame does not ask for one of these addresses.
    """
    if frame[12:14] == ARP:
        if len(frame) < HEADER + _ARP.size:
            return None
        _, _, _, _, operation, sender, sender_address, _, target = _ARP.unpack_from(frame, HEADER)
        if operation != _REQUEST or target not in own:
            return None
        return ROUTER + STATION + ARP + _ARP.pack(1, 0x0800, 6, 4, _REPLY, STATION, target, sender, sender_address)
    if not is_neighbour_discovery(frame) or frame[54] != _SOLICITATION or len(frame) < 78 or frame[62:78] not in own:
        return None
    return _advertisement(frame[62:78], frame[22:38])


def is_neighbour_discovery(frame: bytes) -> bool:
    """Whether a frame from libslirp is an advertisement or a solicitation, which does not concern the enclave."""
    is_icmp = frame[12:14] == IPV6 and len(frame) > 54 and frame[20] == _ICMPV6
    return is_icmp and frame[54] in {_ROUTER_ADVERTISEMENT, _SOLICITATION, _ADVERTISEMENT}


def _advertisement(address: bytes, destination: bytes) -> bytes:
    """A neighbour advertisement (RFC 4861, section 4.4)."""
    message = struct.pack(">BBHI", _ADVERTISEMENT, 0, 0, _SOLICITED_OVERRIDE) + address
    message += _TARGET_LINK_LAYER_ADDRESS + STATION
    pseudo = address + destination + struct.pack(">II", len(message), _ICMPV6)
    checksum = internet_checksum(pseudo + message).to_bytes(2, "big")
    message = message[:2] + checksum + message[4:]
    header = struct.pack(">IHBB", 6 << 28, len(message), _ICMPV6, 255)
    return TO_ROUTER[6] + header + address + destination + message
