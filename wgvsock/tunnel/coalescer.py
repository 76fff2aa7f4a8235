"""Makes one super-packet of consecutive datagrams of one UDP flow: many small packets then cost little more than one.

TCP's stack hands over super-packets by itself; an application that sends datagrams one by one does not. Datagrams that
wait in the interface's queue, one behind the other, of one flow and one size, are put together as UDP segmentation
offload has them (the last may be shorter): one encryption, one frame, one write at the far end, whose kernel takes them
apart again. Nothing waits for company: what is not in the queue already goes out alone.

Nothing is moved either: while a super-packet grows, the next packet's headers are read beside it and its payload right
behind the payload that is there.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.devices.base import TunDevice
from wgvsock.tunnel.udp_segmentation import write_super_header
from wgvsock.virtio_net import DATA_VALID, GSO_NONE, HEADER_LENGTH, NEEDS_CSUM

MAX_PACKET: Final = 65_535
"""Bytes of the longest IP packet, which is what the kernel hands over as one super-packet."""

PADDING: Final = 16
"""Bytes behind a packet that sealing zeroes to pad it (whitepaper, section 5.4.6)."""

MAX_SEGMENTS: Final = 64
"""Datagrams in one super-packet: UDP_MAX_SEGMENTS of the oldest kernels that know UDP segmentation."""

_LONGEST: Final = HEADER_LENGTH + MAX_PACKET
_UDP: Final = 17
_DONT_FRAGMENT: Final = b"\x40\x00"

_IPV4: Final = struct.Struct(">12sH2x4s2x12sHH")
_IPV6: Final = struct.Struct(">14sH2s36sHH")
"""Headers of a datagram with its virtio-net header. Byte strings: what has to be equal in all datagrams of a
super-packet (IPv4: up to TOS; DF, TTL, protocol; addresses and ports. IPv6: up to the flow label; next header, hop
limit; addresses and ports). Numbers: length in the IP header, length and checksum in the UDP header."""


class Coalescer:
    """Reads packets from a TUN with 10 bytes of headroom.

    Args:
        tun: Where packets come from.

    Attributes:
        buffer: Holds the last packet that `read` returned, with room for padding behind it.
        segments: How many packets of the TUN are in it.
        waiting: Bytes of a packet that has been read already and is returned by the next `read`; 0: none.
        drained: Whether the TUN has just said that nothing comes after it.
        enabled: Whether datagrams are put together.
    """

    def __init__(self, tun: TunDevice) -> None:
        self._tun = tun
        # Twice the longest packet: whatever is read behind a super-packet that still grows has room.
        self.buffer, self._other = (memoryview(bytearray(2 * _LONGEST + PADDING)) for _ in range(2))
        self._beside = memoryview(bytearray(_IPV6.size))
        self.segments = 0
        self.waiting = 0
        self.drained = False
        self.enabled = False

    def read(self) -> int:
        """The next packet or super-packet, with its headroom, into `buffer`; its length in bytes, 0: there is none.

        Raises:
            SystemSetupError: The interface is gone.
        """
        length = self.waiting
        self.drained = False
        if length:
            self.buffer, self._other = self._other, self.buffer
            self.waiting = 0
        else:
            length = self._tun.read_into(self.buffer[:_LONGEST])
        self.segments = 1
        if not self.enabled or length <= HEADER_LENGTH + 28:
            return length
        return self._grow(length)

    def _grow(self, length: int) -> int:
        """Put the datagrams that follow behind this one, as far as they belong to it; the length of the whole."""
        buffer = self.buffer
        if buffer[HEADER_LENGTH] == 0x45:
            if buffer[HEADER_LENGTH + 9] != _UDP:
                return length
            fields = _IPV4
        elif buffer[HEADER_LENGTH + 6] != _UDP:
            return length
        else:
            fields = _IPV6
        headers = fields.size
        size = length - headers
        if size <= 0:
            return length
        first = fields.unpack_from(buffer)
        if not _may_grow(first, size):
            return length
        unpack_from, read_split, beside = fields.unpack_from, self._tun.read_split, self._beside[:headers]
        end = length
        while self.segments < MAX_SEGMENTS and end + size <= _LONGEST:
            room = buffer[end : end + _LONGEST]
            read = read_split(beside, room)
            if not read:
                self.drained = True
                break
            payload = read - headers
            if not 0 < payload <= size or not _belongs(unpack_from(beside), first, payload, size):
                self._other[:headers] = beside
                self._other[headers : max(headers, read)] = room[: max(0, payload)]
                self.waiting = read
                break
            end += payload
            self.segments += 1
            if payload < size:
                break
        if self.segments > 1:
            write_super_header(buffer, end, size)
        return end


_Fields = tuple[bytes, int, bytes, bytes, int, int]


def _may_grow(fields: _Fields, size: int) -> bool:
    """Whether this is a datagram that is no fragment, no super-packet yet, and has a checksum that is right or open."""
    start, length, middle, _, udp_length, checksum = fields
    if start[0] not in {NEEDS_CSUM, DATA_VALID} or start[1] != GSO_NONE or not checksum or udp_length != size + 8:
        return False
    if start[HEADER_LENGTH] == 0x45:
        # With DF the identification means nothing (RFC 6864): the far kernel may number the datagrams as it likes.
        return length == size + 28 and middle[3] == _UDP and middle[:2] == _DONT_FRAGMENT
    return length == size + 8 and middle[0] == _UDP and start[HEADER_LENGTH] >> 4 == 6


def _belongs(fields: _Fields, first: _Fields, payload: int, size: int) -> bool:
    """Whether a datagram with this payload is of the first one's flow, whose payload is `size` bytes."""
    start, length, middle, ends, udp_length, checksum = fields
    return (
        start == first[0]
        and middle == first[2]
        and ends == first[3]
        and length - payload == first[1] - size
        and udp_length == payload + 8
        and checksum != 0
    )
