"""Datagrams on a byte stream: both framings, no I/O.

``native``, ours: a u32 **big-endian** payload length in front of each datagram. No checksum: the AEAD inside is one::

    length:u32be | payload

``compat``, the framing of the paper's program (wireguard-go-vsock): a u16 **little-endian** payload length and the
**little-endian** CRC-32 (IEEE 802.3) of the payload. No greeting, no version; a bad checksum or a short read closes
the stream::

    length:u16le | crc32:u32le | payload

Encoding writes a header into the room in front of a datagram that was sealed in place. Decoding owns the receive
buffer and hands out views of it: nothing is copied but the part of a frame that the end of a read cuts off.
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum
from typing import Final, Protocol

from wgvsock.errors import FramingError

try:
    from isal import isal_zlib
except ImportError:
    _crc32 = zlib.crc32
else:
    _crc32 = isal_zlib.crc32  # 12 times faster on a full frame

RECEIVE_BUFFER_SIZE: Final = 256 * 1024
"""Bytes of one read: four super-packets, or 180 full packets; more gains nothing and costs cache."""

MAX_NATIVE_DATAGRAM: Final = 65_600
"""A 65,535-byte packet, 10 of virtio-net header, padding to 16, 32 of WireGuard header and tag: 65,584, rounded up."""

MAX_COMPAT_DATAGRAM: Final = 65_530
"""What the paper's program accepts: 65,536 less its header's 6 bytes."""


class Framing(StrEnum):
    """Which framing a stream carries."""

    NATIVE = "native"
    COMPAT = "compat"


class Codec(Protocol):
    """Header writer and frame parser of one framing."""

    header_length: int
    max_datagram: int

    def write_header(self, buffer: memoryview, offset: int, length: int) -> None:
        """Write the header at `offset` for the `length` bytes of payload that already stand right behind it."""
        ...

    def parse(self, buffer: memoryview, start: int, end: int, frames: list[memoryview]) -> int:
        """Append the payload of every whole frame in ``buffer[start:end]``; the offset of the first that is not whole.

        Raises:
            FramingError: A length is out of bounds or a checksum is wrong.
        """
        ...


class NativeCodec:
    """The ``native`` framing."""

    header_length = 4
    max_datagram = MAX_NATIVE_DATAGRAM

    _header = struct.Struct(">I")

    def write_header(self, buffer: memoryview, offset: int, length: int) -> None:
        """See `Codec.write_header`."""
        self._header.pack_into(buffer, offset, length)

    def parse(self, buffer: memoryview, start: int, end: int, frames: list[memoryview]) -> int:
        """See `Codec.parse`."""
        unpack_from = self._header.unpack_from
        append = frames.append
        last_header = end - 4
        while start <= last_header:
            (length,) = unpack_from(buffer, start)
            if length > MAX_NATIVE_DATAGRAM or not length:
                raise _bad_length(length, MAX_NATIVE_DATAGRAM)
            payload = start + 4
            frame_end = payload + length
            if frame_end > end:
                break
            append(buffer[payload:frame_end])
            start = frame_end
        return start


class CompatCodec:
    """The ``compat`` framing."""

    header_length = 6
    max_datagram = MAX_COMPAT_DATAGRAM

    _header = struct.Struct("<HI")

    def write_header(self, buffer: memoryview, offset: int, length: int) -> None:
        """See `Codec.write_header`."""
        payload = offset + 6
        self._header.pack_into(buffer, offset, length, _crc32(buffer[payload : payload + length]))

    def parse(self, buffer: memoryview, start: int, end: int, frames: list[memoryview]) -> int:
        """See `Codec.parse`."""
        unpack_from = self._header.unpack_from
        last_header = end - 6
        while start <= last_header:
            length, crc = unpack_from(buffer, start)
            if length > MAX_COMPAT_DATAGRAM or not length:
                raise _bad_length(length, MAX_COMPAT_DATAGRAM)
            payload = start + 6
            frame_end = payload + length
            if frame_end > end:
                break
            frame = buffer[payload:frame_end]
            if _crc32(frame) != crc:
                raise FramingError(
                    "a frame on the stream is damaged",
                    why="its CRC-32 does not match its payload",
                    fix="check that both ends speak the compat framing",
                )
            frames.append(frame)
            start = frame_end
        return start


_CODECS: Final[dict[Framing, Codec]] = {Framing.NATIVE: NativeCodec(), Framing.COMPAT: CompatCodec()}


def codec_for(framing: Framing) -> Codec:
    """The codec of a framing; it holds no state and is shared."""
    return _CODECS[framing]


class FrameDecoder:
    """Cuts a byte stream into datagrams, however the stream was chunked.

    ``view = decoder.receive_buffer()``, receive at most ``len(view)`` bytes into it, ``decoder.received(n)``. The
    datagrams it returns are views of the decoder's one buffer: valid until the next `receive_buffer`.

    Args:
        framing: Which framing the stream carries.
        buffer_size: Bytes of the buffer; the largest frame must fit.
    """

    def __init__(self, framing: Framing, buffer_size: int = RECEIVE_BUFFER_SIZE) -> None:
        self._codec = codec_for(framing)
        self._minimum_room = self._codec.header_length + self._codec.max_datagram
        self._buffer = memoryview(bytearray(max(buffer_size, self._minimum_room)))
        self._start = 0  # the first byte not yet handed out
        self._end = 0  # behind the last byte received

    def receive_buffer(self) -> memoryview:
        """Where the next bytes of the stream belong; never empty."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
            return self._buffer
        if start:
            # The rest of a cut-off frame moves to the front: the room behind it always takes the whole frame.
            self._buffer[: end - start] = self._buffer[start:end]
            self._start = 0
            self._end = end - start
        return self._buffer[self._end :]

    def received(self, length: int) -> list[memoryview]:
        """Take in `length` bytes that were written to the last `receive_buffer`; the datagrams that are now whole.

        Raises:
            FramingError: The stream is no sequence of frames; nothing more can be decoded from it.
        """
        frames: list[memoryview] = []
        self._end += length
        self._start = self._codec.parse(self._buffer, self._start, self._end, frames)
        return frames


def _bad_length(length: int, limit: int) -> FramingError:
    return FramingError(
        "a frame on the stream is damaged",
        why=f"it announces {length} bytes of payload, and 1 to {limit} are allowed",
        fix="check that both ends speak the same framing",
    )
