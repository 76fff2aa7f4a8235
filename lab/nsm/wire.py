"""Messages on a stream socket: an unsigned 32-bit big-endian length, then that many bytes."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

MAX_MESSAGE_SIZE: Final = 1 << 16
"""Limit in bytes. The module's own limits are 4096 for a request and 12,288 for a response."""

_LENGTH: Final = struct.Struct(">I")


def control_path(folder: Path) -> str:
    """Return the control socket of the signer whose files are in this folder."""
    return str(folder / "control.sock")


def send_message(connection: socket.socket, message: bytes) -> None:
    """Send one complete message.

    Raises:
        OSError: The connection broke.
    """
    connection.sendall(_LENGTH.pack(len(message)) + message)


def receive_message(connection: socket.socket) -> bytes | None:
    """Receive one message, or return None if the other side closed the connection between two.

    Raises:
        OSError: The connection broke, or the message is too long.
    """
    head = receive_bytes(connection, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_MESSAGE_SIZE:
        raise ConnectionError(f"a message of {length} bytes")
    message = receive_bytes(connection, length)
    if length and not message:
        raise ConnectionError("the connection ended within a message")
    return message


def receive_bytes(connection: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or none if the stream ends before the first of them.

    Raises:
        OSError: The connection broke, or ended after the first.
    """
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece and received:
            raise ConnectionError("the connection ended within a message")
        if not piece:
            break
        received += piece
    return bytes(received)
