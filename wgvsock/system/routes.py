"""The machine's routes: notices changes, and finds the interface that leads to a remote address (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

from wgvsock.system.rawnetlink import RawNetlink, attribute, attributes

_RTM_GETROUTE: Final = 26
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE."""

_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths of destination and source, ..., flags
_NUMBER: Final = struct.Struct("=I")
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_RTA_MARK: Final = 16

_DRAIN_BYTES: Final = 1 << 16


class RouteWatch:
    """Listens for changes to this network namespace's links, addresses and routes. Needs no privilege.

    Raises:
        OSError: Netlink is not available.
    """

    def __init__(self) -> None:
        self._asking = RawNetlink(socket.NETLINK_ROUTE)
        self._listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._listening.bind((0, _GROUPS))

    def fileno(self) -> int:
        """The descriptor, readable when something has changed."""
        return self._listening.fileno()

    def drain(self) -> None:
        """Read and discard all notifications: only their arrival matters."""
        while True:
            try:
                self._listening.recv(_DRAIN_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: the queue overflowed, and notifications were lost
                continue

    def interface_to(self, remote: str, source: bytes, mark: int) -> int | None:
        """Find the interface through which a packet would leave now.

        Args:
            remote: The destination, an IPv4 or IPv6 address.
            source: The packet's source address, 4 or 16 bytes.
            mark: The packet's mark (SO_MARK), 0 for none.

        Returns:
            The interface's index, or None if there is no route. With IPv4 also None if the source is not an address of
            this machine.
        """
        family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
        bits = 8 * len(source)
        body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
        body += attribute(_RTA_DST, socket.inet_pton(family, remote)) + attribute(_RTA_SRC, source)
        if mark:
            body += attribute(_RTA_MARK, _NUMBER.pack(mark))
        try:
            answer = self._asking.ask(_RTM_GETROUTE, body)
        except OSError:
            return None
        for kind, value in attributes(answer[_ROUTE.size :]):
            if kind == _RTA_OIF:
                return int(_NUMBER.unpack(value)[0])
        return None

    def close(self) -> None:
        """Close both sockets. Idempotent."""
        self._listening.close()
        self._asking.close()


def watch_routes() -> RouteWatch | None:
    """Open a `RouteWatch`, or return None if netlink is not available."""
    with contextlib.suppress(OSError):
        return RouteWatch()
    return None
