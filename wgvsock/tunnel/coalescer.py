"""Makes one packet of many that wait in the interface's queue: many small packets then cost little more than one.

* The TCP stack hands over super-packets by itself. An application that sends datagrams one by one does not. Consecutive
  datagrams of one flow and one size are merged into the form of UDP segmentation offload (the last one may be shorter).
  They then cost one encryption, one frame, and one write at the far end, whose kernel splits them again.
* Of consecutive TCP acknowledgements of one connection, the newest is enough (`wgvsock/tunnel/acknowledgement.py`).

No packet waits for others: only those already in the queue are read.

The next packet is read into a separate buffer. A datagram's payload is copied from there, which costs less than a read
that splits it.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.devices.base import TunDevice
from wgvsock.tunnel.acknowledgement import Acknowledgements, Fields, Unpack, supersedes
from wgvsock.tunnel.segmentation import write_super_header
from wgvsock.virtio_net import DATA_VALID, GSO_NONE, HEADER_LENGTH, MAXIMUM_UDP_SEGMENTS, NEEDS_CSUM

MAX_PACKET: Final = 65_535
"""Bytes of the longest IP packet, which is also the longest super-packet that the kernel hands over."""

PADDING: Final = 16
"""Bytes after a packet that sealing zeroes as padding (whitepaper, section 5.4.6)."""

MAXIMUM_ACKNOWLEDGEMENTS: Final = 64
"""Acknowledgements of which one is made. More wait in the queue only if the processor was away for a long time."""

_LONGEST: Final = HEADER_LENGTH + MAX_PACKET
_UDP: Final = 17
_IPV4_PROTOCOL: Final = HEADER_LENGTH + 9
_IPV6_NEXT_HEADER: Final = HEADER_LENGTH + 6
_DONT_FRAGMENT: Final = b"\x40\x00"

_IPV4: Final = struct.Struct(">12sH2x4s2x12sHH")
_IPV6: Final = struct.Struct(">14sH2s36sHH")
"""Headers of a datagram with its virtio-net header. Byte strings: fields that must be equal in all datagrams of a
super-packet (IPv4: up to TOS; DF, TTL, protocol; addresses and ports. IPv6: up to the flow label; next header, hop
limit; addresses and ports). Numbers: length in the IP header, length and checksum in the UDP header."""


class Coalescer:
    """Reads packets from a TUN.

    Args:
        tun: The source of packets.

    Attributes:
        buffer: Holds the last packet that `read` returned, with space for padding after it.
        segments: Number of the TUN's packets that it stands for.
        waiting: Bytes of a packet that was already read and that the next `read` returns. 0 if there is none.
        drained: Whether the TUN has just reported that no packet follows.
        enabled: Whether to merge datagrams. The TUN has 10 bytes of headroom then.
        superseded: Acknowledgements that a newer one replaced.
    """

    def __init__(self, tun: TunDevice) -> None:
        self._tun = tun
        self.buffer, self._next = (memoryview(bytearray(_LONGEST + PADDING)) for _ in range(2))
        self._acknowledgements = Acknowledgements(tun.packet_headroom)
        self.segments = 0
        self.waiting = 0
        self.drained = False
        self.enabled = False
        self.superseded = 0

    def read(self, *, ahead: bool = True) -> int:
        """Read the next packet or super-packet, with its headroom, into `buffer`.

        Args:
            ahead: Whether to look for packets that it can be merged with.

        Returns:
            Its length in bytes, 0 if there is none.

        Raises:
            SystemSetupError: The interface is gone.
        """
        length = self.waiting
        self.drained = False
        if length:
            self.buffer, self._next = self._next, self.buffer
            self.waiting = 0
        else:
            length = self._tun.read_into(self.buffer[:_LONGEST])
        self.segments = 1
        if not ahead:
            return length
        buffer = self.buffer
        if length <= self._acknowledgements.longest:
            acknowledgement = self._acknowledgements.recognise(buffer, length)
            if acknowledgement is not None:
                return self._newest(length, *acknowledgement)
        # Neither IPv4's protocol nor IPv6's next header: most packets are told by these two bytes.
        if not self.enabled or (buffer[_IPV4_PROTOCOL] != _UDP and buffer[_IPV6_NEXT_HEADER] != _UDP):
            return length
        return self._grow(length) if length > HEADER_LENGTH + 28 else length

    def _newest(self, length: int, unpack: Unpack, older: Fields) -> int:
        """Read the acknowledgements that follow, as long as each replaces the one before. All have the same length."""
        read_into = self._tun.read_into
        segments = 1
        while segments < MAXIMUM_ACKNOWLEDGEMENTS:
            following = self._next
            read = read_into(following[:_LONGEST])
            if not read:
                self.drained = True
                break
            if read != length or not supersedes(newer := unpack(following), older):
                self.waiting = read
                break
            self.buffer, self._next = following, self.buffer
            older = newer
            segments += 1
        self.segments = segments
        self.superseded += segments - 1
        return length

    def _grow(self, length: int) -> int:
        """Append the datagrams that follow, as long as they belong to this flow. Returns the total length."""
        buffer = self.buffer
        fields = _IPV4 if buffer[HEADER_LENGTH] == 0x45 else _IPV6
        headers = fields.size
        size = length - headers
        if size <= 0:
            return length
        first = fields.unpack_from(buffer)
        if not _may_grow(first, size):
            return length
        read_into, unpack_from, following = self._tun.read_into, fields.unpack_from, self._next
        room = following[:_LONGEST]
        alike = first[:-1]
        segments, end = 1, length
        while segments < MAXIMUM_UDP_SEGMENTS and end + size <= _LONGEST:
            read = read_into(room)
            if not read:
                self.drained = True
                break
            found = unpack_from(following)
            payload = read - headers
            # One of the same size, as most are, differs in nothing but its checksum.
            if not (found[:-1] == alike and found[-1] if read == length else _ends(found, first, payload, size)):
                self.waiting = read
                break
            buffer[end : end + payload] = following[headers:read]
            end += payload
            segments += 1
            if payload < size:
                break
        self.segments = segments
        if segments > 1:
            write_super_header(buffer, end, size)
        return end


_Fields = tuple[bytes, int, bytes, bytes, int, int]


def _may_grow(fields: _Fields, size: int) -> bool:
    """Whether this datagram can begin a super-packet: not a fragment, and with a valid or incomplete checksum."""
    start, length, middle, _, udp_length, checksum = fields
    if start[0] not in {NEEDS_CSUM, DATA_VALID} or start[1] != GSO_NONE or not checksum or udp_length != size + 8:
        return False
    if start[HEADER_LENGTH] == 0x45:
        # With DF set, the identification has no meaning (RFC 6864): the far kernel may number datagrams as it likes.
        return length == size + 28 and middle[3] == _UDP and middle[:2] == _DONT_FRAGMENT
    return length == size + 8 and middle[0] == _UDP and start[HEADER_LENGTH] >> 4 == 6


def _ends(fields: _Fields, first: _Fields, payload: int, size: int) -> bool:
    """Whether a datagram is the shorter last one of the first one's flow, whose payload is `size` bytes."""
    start, length, middle, ends, udp_length, checksum = fields
    return (
        0 < payload < size
        and start == first[0]
        and middle == first[2]
        and ends == first[3]
        and length - payload == first[1] - size
        and udp_length == payload + 8
        and checksum != 0
    )
