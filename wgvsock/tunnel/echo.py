"""ICMP and ICMPv6 echo messages in complete IP packets (RFC 792, RFC 4443 section 4), as a tunnel carries them.

Only what the path probe needs: a request of one fixed size, and the reply that every IP stack sends. The AEAD has
authenticated whatever comes out of a tunnel, so checksums of replies are not verified.
"""

from __future__ import annotations

import struct
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.checksum import internet_checksum

TOKEN_SIZE: Final = 16
"""Bytes of payload. Nobody can guess them, so a reply proves that the request was received."""

_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")  # RFC 791, section 3.1
_IPV6: Final = struct.Struct(">IHBB16s16s")  # RFC 8200, section 3
_ECHO: Final = struct.Struct(">BBHHH")
"""Type, code, checksum, identifier, sequence number."""
_MESSAGE_SIZE: Final = _ECHO.size + TOKEN_SIZE

_ICMP, _ICMPV6 = 1, 58
_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}
_HOPS: Final = 64
_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT: Final = 0x3FFF
"""More-fragments bit and offset."""


class Echo:
    """Builds requests from one address to another, and recognises their replies.

    Args:
        source: Our own address.
        destination: The address to probe, of the same IP version.
        identifier: 16 bits that distinguish most of our replies from those to an operator's ``ping``. The token
            distinguishes all of them.
        headroom: Bytes in front of each packet. They are 0 in requests, which as a virtio-net header means one plain
            packet with complete checksums.
    """

    def __init__(self, source: IpAddress, destination: IpAddress, identifier: int, headroom: int) -> None:
        self.source = source
        self.destination = destination
        self._identifier = identifier
        self._headroom = bytes(headroom)
        self._version = source.version
        self._source, self._destination = source.packed, destination.packed
        header = _IPV4.size if source.version == 4 else _IPV6.size
        self._message_at = headroom + header
        self._size = self._message_at + _MESSAGE_SIZE

    def request(self, sequence: int, token: bytes) -> bytes:
        """Build a request.

        Args:
            sequence: Sequence number, 16 bits.
            token: `TOKEN_SIZE` bytes.

        Returns:
            One packet with its headroom.
        """
        kind = _REQUEST[self._version]
        message = _ECHO.pack(kind, 0, 0, self._identifier, sequence) + token
        if self._version == 4:
            header = self._ipv4_header(0)
            header = self._ipv4_header(internet_checksum(header))
            pseudo_header = b""
        else:
            header = _IPV6.pack(6 << 28, _MESSAGE_SIZE, _ICMPV6, _HOPS, self._source, self._destination)
            pseudo_header = self._source + self._destination + struct.pack(">II", _MESSAGE_SIZE, _ICMPV6)
        message = _ECHO.pack(kind, 0, internet_checksum(pseudo_header + message), self._identifier, sequence) + token
        return self._headroom + header + message

    def reply_in(self, packet: memoryview) -> tuple[int, bytes] | None:
        """Parse a reply.

        Args:
            packet: One packet with its headroom. The tunnel has checked that its length matches the IP header.

        Returns:
            Sequence number and token, or None if the packet is not a reply to one of our requests.
        """
        if len(packet) != self._size or not self._is_for_us(packet[len(self._headroom) : self._message_at]):
            return None
        kind, code, _, identifier, sequence = _ECHO.unpack_from(packet, self._message_at)
        if kind != _REPLY[self._version] or code or identifier != self._identifier:
            return None
        return sequence, bytes(packet[self._message_at + _ECHO.size :])

    def _is_for_us(self, header: memoryview) -> bool:
        if self._version == 4:
            first, _, _, _, fragment, _, protocol, _, source, destination = _IPV4.unpack(header)
            whole = first == 0x45 and protocol == _ICMP and not fragment & _FRAGMENT
        else:
            word, _, protocol, _, source, destination = _IPV6.unpack(header)
            whole = word >> 28 == 6 and protocol == _ICMPV6
        return bool(whole and source == self._destination and destination == self._source)

    def _ipv4_header(self, header_checksum: int) -> bytes:
        length = _IPV4.size + _MESSAGE_SIZE
        return _IPV4.pack(
            0x45, 0, length, 0, _DONT_FRAGMENT, _HOPS, _ICMP, header_checksum, self._source, self._destination
        )
