"""The four messages on the wire, as values (whitepaper sections 5.4.2 to 5.4.7). All integers are little-endian.

The hot path of transport data reads and writes the 16-byte header in place (send.py, receive.py). `TransportData` is
for code that examines single messages.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from wgvsock.errors import RemoteProtocolError
from wgvsock.wireguard.constants import (
    COOKIE_REPLY,
    COOKIE_REPLY_SIZE,
    HANDSHAKE_INITIATION,
    HANDSHAKE_INITIATION_SIZE,
    HANDSHAKE_RESPONSE,
    HANDSHAKE_RESPONSE_SIZE,
    MAC_SIZE,
    TRANSPORT_DATA,
    TRANSPORT_HEADER_SIZE,
    TRANSPORT_OVERHEAD,
)
from wgvsock.wireguard.primitives import Bytes

NO_MAC: Final = bytes(MAC_SIZE)


@dataclass(frozen=True, slots=True)
class HandshakeInitiation:
    """First message (section 5.4.2), 148 bytes.

    Layout: u32 type 1, u32 sender index, 32 ephemeral, 32+16 static, 12+16 timestamp, 16 mac1, 16 mac2.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II32s48s28s16s16s")

    sender_index: int
    unencrypted_ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def pack(self) -> bytes:
        """The message's 148 bytes."""
        return self.LAYOUT.pack(
            HANDSHAKE_INITIATION,
            self.sender_index,
            self.unencrypted_ephemeral,
            self.encrypted_static,
            self.encrypted_timestamp,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class HandshakeResponse:
    """Second message (section 5.4.3), 92 bytes.

    Layout: u32 type 2, u32 sender index, u32 receiver index, 32 ephemeral, 0+16 nothing, 16 mac1, 16 mac2.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<III32s16s16s16s")

    sender_index: int
    receiver_index: int
    unencrypted_ephemeral: bytes
    encrypted_nothing: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def pack(self) -> bytes:
        """The message's 92 bytes."""
        return self.LAYOUT.pack(
            HANDSHAKE_RESPONSE,
            self.sender_index,
            self.receiver_index,
            self.unencrypted_ephemeral,
            self.encrypted_nothing,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Answer of a device under load (section 5.4.7), 64 bytes.

    Layout: u32 type 3, u32 receiver index, 24 nonce, 16+16 cookie.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II24s32s")

    receiver_index: int
    nonce: bytes
    encrypted_cookie: bytes

    def pack(self) -> bytes:
        """The message's 64 bytes."""
        return self.LAYOUT.pack(COOKIE_REPLY, self.receiver_index, self.nonce, self.encrypted_cookie)


@dataclass(frozen=True, slots=True)
class TransportData:
    """An encrypted packet (section 5.4.6) of at least 32 bytes. A message of exactly 32 is a keepalive.

    Layout: u32 type 4, u32 receiver index, u64 counter, n+16 packet.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQ")

    receiver_index: int
    counter: int
    encrypted_encapsulated_packet: bytes

    @property
    def is_keepalive(self) -> bool:
        """Whether the encrypted packet is empty."""
        return len(self.encrypted_encapsulated_packet) == TRANSPORT_OVERHEAD - TRANSPORT_HEADER_SIZE

    def pack(self) -> bytes:
        """The message's bytes."""
        header = self.LAYOUT.pack(TRANSPORT_DATA, self.receiver_index, self.counter)
        return header + self.encrypted_encapsulated_packet


Message = HandshakeInitiation | HandshakeResponse | CookieReply | TransportData


def parse_message(data: Bytes) -> Message:
    """Parse one datagram. Its size must be exact, and its reserved bytes zero (section 5.4).

    Args:
        data: One complete message, of any length.

    Raises:
        RemoteProtocolError: It is not one of the four messages.
    """
    size = len(data)
    kind = int.from_bytes(data[:4], "little")
    match kind:
        case 1 if size == HANDSHAKE_INITIATION_SIZE:
            return HandshakeInitiation(*HandshakeInitiation.LAYOUT.unpack(data)[1:])
        case 2 if size == HANDSHAKE_RESPONSE_SIZE:
            return HandshakeResponse(*HandshakeResponse.LAYOUT.unpack(data)[1:])
        case 3 if size == COOKIE_REPLY_SIZE:
            return CookieReply(*CookieReply.LAYOUT.unpack(data)[1:])
        case 4 if size >= TRANSPORT_OVERHEAD:
            _, receiver_index, counter = TransportData.LAYOUT.unpack_from(data)
            return TransportData(receiver_index, counter, bytes(data[TRANSPORT_HEADER_SIZE:]))
        case _:
            raise RemoteProtocolError("not a WireGuard message", why=f"{size} bytes of type {kind}")
