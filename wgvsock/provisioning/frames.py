"""Frames on the provisioning stream: a big-endian u32 length, then that many bytes of one message.

The reader checks the length against the limit of the expected message before it stores anything. So it never holds more
than one message and its four bytes of length.
"""

from __future__ import annotations

from typing import Final

from wgvsock.provisioning.errors import BadFrameError

LENGTH_BYTES: Final = 4


def encode_frame(message: bytes) -> bytes:
    """The message with its length in front, 4 bytes longer."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


class FrameReader:
    """Collects one frame at a time from chunks of any size."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def started(self) -> bool:
        """Whether part of a frame has arrived."""
        return bool(self._buffer)

    def take(self, data: memoryview, limit: int) -> tuple[bytes | None, memoryview]:
        """Take the bytes of the current frame from `data`.

        Args:
            data: Newly received bytes.
            limit: The longest message that may arrive now, in bytes.

        Returns:
            The message if it is complete, otherwise None, and the rest of `data` after it.

        Raises:
            BadFrameError: The announced length is zero or above the limit.
        """
        data = self._take_up_to(LENGTH_BYTES, data)
        if len(self._buffer) < LENGTH_BYTES:
            return None, data
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if not 0 < length <= limit:
            raise BadFrameError("its length is zero, or more than this message may have")
        data = self._take_up_to(LENGTH_BYTES + length, data)
        if len(self._buffer) < LENGTH_BYTES + length:
            return None, data
        message = bytes(self._buffer[LENGTH_BYTES:])
        self._buffer.clear()
        return message, data

    def _take_up_to(self, total: int, data: memoryview) -> memoryview:
        missing = max(0, total - len(self._buffer))
        self._buffer += data[:missing]
        return data[missing:]
