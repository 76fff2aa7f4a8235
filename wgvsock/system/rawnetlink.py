"""Netlink messages laid out by hand (netlink(7)), for the few that pyroute2 cannot make. Native byte order.

The kernel handles a request while it is sent: its answer waits when ``send`` returns.
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

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length with this header, type
_TYPE_MASK: Final = 0x3FFF  # without the flags "nested" and "network byte order"
_RECEIVE_BYTES: Final = 65536
_TIMEOUT: Final = 5.0
"""Seconds: only a kernel that is in trouble needs longer."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`, as (type, value); a malformed rest is left out."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


class RawNetlink:
    """One netlink socket; a context manager.

    Args:
        family: NETLINK_ROUTE, NETLINK_NETFILTER, ...
    """

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def change(self, kind: int, body: bytes) -> None:
        """Send one request and wait for its acknowledgement.

        Raises:
            OSError: The kernel refused.
        """
        self._send(kind, NLM_F_REQUEST | NLM_F_ACK, body)
        for _ in self._answers():
            return

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Send one request and collect the bodies of all answers.

        Raises:
            OSError: The kernel refused.
        """
        self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        return list(self._answers())

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)

    def _answers(self) -> Iterator[bytes]:
        """Bodies up to the end of the dump or the acknowledgement, which is not among them."""
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
