"""Frames on the provisioning stream: u32 big-endian length, then that many bytes of one message.

The length is checked against the limit of the message that is due before anything is stored, so a reader never holds
more than that message and its four bytes of length.
"""

from __future__ import annotations

from typing import Final

from wgvsock.provisioning.errors import BadFrameError

LENGTH_BYTES: Final = 4


def encode_frame(message: bytes) -> bytes:
    """The message with its length in front."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


class FrameReader:
    """Collects one frame at a time from chunks of any size."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def started(self) -> bool:
        """Whether a part of a frame has arrived."""
        return bool(self._buffer)

    def take(self, data: memoryview, limit: int) -> tuple[bytes | None, memoryview]:
        """Take from `data` what belongs to the current frame.

        Args:
            data: Newly received bytes.
            limit: The longest message that may arrive now, in bytes.

        Returns:
            The message once it is whole, else None; and the part of `data` that lies behind it.

        Raises:
            BadFrameError: The announced length is zero or above the limit.
        """
        data = self._take_up_to(LENGTH_BYTES, data)
        if len(self._buffer) < LENGTH_BYTES:
            return None, data
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if not 0 < length <= limit:
            raise BadFrameError("its length is zero or more than this message may have")
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
