"""Datagrams on a byte stream: both framings, without I/O.

``native``, ours: a u32 **big-endian** payload length before each datagram. It has no checksum, because the AEAD inside
protects integrity::

    length:u32be | payload

``compat``, the framing of the paper's program (wireguard-go-vsock): a u16 **little-endian** payload length and the
**little-endian** CRC-32 (IEEE 802.3) of the payload. It has no greeting and no version. A bad checksum or a short read
closes the stream::

    length:u16le | crc32:u32le | payload

Encoding writes a header into the space in front of a datagram that was sealed in place. Decoding owns the receive
buffer and hands out views of it. The only bytes copied are those of a frame that the end of a read cuts off.
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum
from typing import ClassVar, Final, Protocol

from wgvsock.errors import FramingError

try:
    from isal import isal_zlib
except ImportError:
    _crc32 = zlib.crc32
else:
    _crc32 = isal_zlib.crc32  # 12 times faster on a full frame

RECEIVE_BUFFER_SIZE: Final = 256 * 1024
"""Bytes of one read: four super-packets, or 180 full packets. More gains nothing and costs cache."""

MAX_NATIVE_DATAGRAM: Final = 65_600
"""A 65,535-byte packet, 10 bytes of virtio-net header, padding to a multiple of 16, and 32 bytes of WireGuard header
and tag make 65,584. Rounded up."""

MAX_COMPAT_DATAGRAM: Final = 65_530
"""What the paper's program accepts: 65,536 minus its 6-byte header."""


class Framing(StrEnum):
    """Which framing a stream carries."""

    NATIVE = "native"
    COMPAT = "compat"


class Codec(Protocol):
    """Header writer and frame parser of one framing.

    Attributes:
        header_length: Bytes of a frame's header.
        max_datagram: Largest payload of a frame, in bytes.
    """

    header_length: int
    max_datagram: int

    def write_header(self, buffer: memoryview, offset: int, length: int, /) -> None:
        """Write a frame's header.

        Args:
            buffer: Holds the payload, preceded by space for the header.
            offset: Where to write the header, `header_length` bytes.
            length: Bytes of payload that already follow it, 1 to `max_datagram`.
        """
        ...

    def parse(self, buffer: memoryview, start: int, end: int, frames: list[memoryview]) -> int:
        """Parse every complete frame in ``buffer[start:end]``.

        Args:
            buffer: Bytes of the stream.
            start: Offset of the first frame.
            end: Offset of the end of the data.
            frames: Takes the frames' payloads, as views of `buffer`.

        Returns:
            The offset of the first byte that no complete frame contains, at most `end`.

        Raises:
            FramingError: A length is out of bounds or a checksum is wrong.
        """
        ...


class NativeCodec:
    """The ``native`` framing."""

    header_length = 4
    max_datagram = MAX_NATIVE_DATAGRAM

    _header: ClassVar = struct.Struct(">I")

    def __init__(self) -> None:
        self.write_header = self._header.pack_into  # nothing but the length: the struct itself does it

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

    _header: ClassVar = struct.Struct("<HI")

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
    """The codec of a framing. It holds no state and is shared."""
    return _CODECS[framing]


class FrameDecoder:
    """Cuts a byte stream into datagrams, however the stream is chunked.

    Take ``view = decoder.receive_buffer()``, receive at most ``len(view)`` bytes into it, then call
    ``decoder.received(n)``. The datagrams it returns are views of the decoder's one buffer. They are valid until the
    next `receive_buffer`.

    Args:
        framing: The framing of the stream.
        buffer_size: Bytes of the buffer, raised to the size of the largest frame if that is more.
    """

    def __init__(self, framing: Framing, buffer_size: int = RECEIVE_BUFFER_SIZE) -> None:
        self._codec = codec_for(framing)
        self._minimum_room = self._codec.header_length + self._codec.max_datagram
        self._buffer = memoryview(bytearray(max(buffer_size, self._minimum_room)))
        self._start = 0  # the first byte not yet handed out
        self._end = 0  # after the last byte received

    def receive_buffer(self) -> memoryview:
        """The space for the next bytes of the stream, never empty."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
            return self._buffer
        if start:
            # Move the partial frame to the front: the space behind it then always holds the rest of the frame.
            self._buffer[: end - start] = self._buffer[start:end]
            self._start = 0
            self._end = end - start
        return self._buffer[self._end :]

    def enlarge(self, buffer_size: int = RECEIVE_BUFFER_SIZE) -> None:
        """Continue with a larger buffer of `buffer_size` bytes.

        Datagrams already handed out stay valid: they are views of the old buffer.
        """
        larger = memoryview(bytearray(buffer_size))
        rest = self._end - self._start
        larger[:rest] = self._buffer[self._start : self._end]
        self._buffer, self._start, self._end = larger, 0, rest

    def received(self, length: int) -> list[memoryview]:
        """Accept `length` bytes that were written to the last `receive_buffer`.

        Returns:
            The datagrams that are now complete, as views of the buffer.

        Raises:
            FramingError: The stream is not a sequence of frames. Nothing more can be decoded from it.
        """
        frames: list[memoryview] = []
        self._end += length
        self._start = self._codec.parse(self._buffer, self._start, self._end, frames)
        return frames


def _bad_length(length: int, limit: int) -> FramingError:
    return FramingError(
        "a frame on the stream is damaged",
        why=f"it announces a payload of {length} bytes, and 1 to {limit} are allowed",
        fix="check that both ends speak the same framing",
    )
