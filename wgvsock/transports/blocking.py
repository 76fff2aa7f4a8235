"""Blocking reads for commands: everything that a connection sends until its end, bounded in time and size."""

from __future__ import annotations

import socket
import time
from typing import Final

_CHUNK: Final = 65536


def receive_to_end(sock: socket.socket, *, limit: int, deadline: float) -> bytes | None:
    """Receive everything until the other side closes.

    Args:
        sock: A blocking socket.
        limit: Largest number of bytes to accept.
        deadline: Seconds on the monotonic clock.

    Returns:
        What was received, or None if it is longer than `limit` bytes.

    Raises:
        OSError: The connection broke or timed out (TimeoutError).
    """
    data = bytearray()
    while len(data) <= limit:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        sock.settimeout(left)
        if not (part := sock.recv(_CHUNK)):
            return bytes(data)
        data += part
    return None
