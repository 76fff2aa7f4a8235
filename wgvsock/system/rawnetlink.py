"""Netlink messages laid out by hand (netlink(7)), for the few that pyroute2 cannot build. Native byte order.

The kernel handles a request during ``send``: the answer is ready when ``send`` returns.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, Self

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length including this header, type
_TYPE_MASK: Final = 0x3FFF  # without the flags "nested" and "network byte order"
_RECEIVE_BYTES: Final = 65536
_TIMEOUT: Final = 5.0
"""Seconds. Only a kernel in trouble needs longer."""


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute.

    Args:
        kind: Type of the attribute, with its flags.
        value: The payload, at most 65,531 bytes.

    Returns:
        Header and payload, padded to a multiple of four bytes.
    """
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Decode attributes, up to the first malformed one.

    Args:
        data: Any number of attributes.

    Yields:
        Type, without its flags, and value.
    """
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


class RawNetlink:
    """One netlink socket. A context manager.

    Args:
        family: NETLINK_ROUTE, NETLINK_NETFILTER, ...
    """

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement.

        Args:
            kind: Type of the message.
            body: The message after its netlink header.
            flags: Flags in addition to those of every request.

        Raises:
            OSError: The kernel refused.
        """
        self._send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)
        for _ in self._answers():
            return

    def ask(self, kind: int, body: bytes) -> bytes:
        """Send one request that has one answer.

        Args:
            kind: Type of the message.
            body: The message after its netlink header.

        Returns:
            The body of the answer, or no bytes if there is none.

        Raises:
            OSError: The kernel refused.
        """
        self._send(kind, NLM_F_REQUEST, body)
        return next(self._answers(), b"")

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Send one dump request.

        The answers are read lazily, because a table may hold any number. No other request is possible until the last
        one is read.

        Args:
            kind: Type of the message.
            body: The message after its netlink header.

        Yields:
            The bodies of the answers.

        Raises:
            OSError: The kernel refused.
        """
        self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        yield from self._answers()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)

    def _answers(self) -> Iterator[bytes]:
        """Bodies up to the end of the dump or the acknowledgement, which is not included."""
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            while len(data) >= _HEADER.size:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    _raise_if_refused(body)
                    return
                yield body


def _raise_if_refused(body: bytes) -> None:
    (status,) = struct.unpack_from("=i", body)
    if status:
        raise OSError(-status, os.strerror(-status) if -status in errno.errorcode else "unknown error")
