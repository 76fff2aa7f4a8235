"""Notices changes in this machine's network: interfaces, addresses, routes, forwarding, rules, resolvers.

A notification only says that it is time to look, and whether rules of ours were removed. The state is then read afresh,
because notifications get lost when their queue overflows. The kernel's older packet filter sends none. If it has rules,
it is polled once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, Self

from wgvsock.system.file_watch import FileWatch
from wgvsock.system.filter import legacy
from wgvsock.system.resolver import RESOLV_CONF

_ROUTE_GROUPS: Final = (1, 5, 7, 8, 9, 11, 19, 24, 25)
"""RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF, IPV6_NETCONF
(linux/rtnetlink.h)."""

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = (7,)  # linux/netfilter/nfnetlink.h

_TAKEN_AWAY: Final = frozenset({2, 5, 8, 26, 27, 28})
"""NFT_MSG_DELTABLE, DELCHAIN, DELRULE and DESTROYTABLE, DESTROYCHAIN, DESTROYRULE (linux/netfilter/nf_tables.h)."""

_OURS: Final = (b"wgvsock-", b"WGVSOCK-")
"""Prefixes of our tables' and chains' names (`wgvsock.system.filter`)."""

_HEADER: Final = struct.Struct("=IH")  # length and type of a message (struct nlmsghdr, linux/netlink.h)
_CHUNK: Final = 65536

_AT_ONCE: Final = 64
"""Messages read in one go. Other tasks get their turn in between when a program rewrites thousands of rules."""


class KernelWatch:
    """Watches two netlink sockets and resolv.conf. A context manager for the event loop's thread.

    Args:
        open_socket: Opens a netlink socket of a protocol. The watch binds it.
        file: The file to watch instead of resolv.conf.
        sizes: Returns the sizes of the older packet filter's tables.
    """

    def __init__(
        self,
        open_socket: Callable[[int], socket.socket] | None = None,
        *,
        file: str = RESOLV_CONF,
        sizes: Callable[[], legacy.Sizes] = legacy.sizes,
    ) -> None:
        self._open_socket = open_socket or _open_socket
        self._file = file
        self._sockets: list[socket.socket | FileWatch] = []
        self._changed = asyncio.Event()
        self._rules_went = False
        self._sizes = sizes
        self._seen = sizes()

    def __enter__(self) -> Self:
        for protocol, groups in ((socket.NETLINK_ROUTE, _ROUTE_GROUPS), (_NETLINK_NETFILTER, _NFNLGRP_NFTABLES)):
            # A kernel without nf_tables sends no notifications about it.
            with contextlib.suppress(OSError):
                self._listen(protocol, sum(1 << group - 1 for group in groups))
        with contextlib.suppress(OSError):  # no inotify instance: the caller looks now and then anyway
            watch = FileWatch(self._file)
            self._sockets.append(watch)
            asyncio.get_running_loop().add_reader(watch, self._heard_of_file, watch)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    async def wait(self, patience: float) -> bool:
        """Return at the next change since the last return, or after `patience` seconds.

        Returns:
            Whether another program removed rules of ours, or may have. Packets do not pass until they are restored.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while not self._changed.is_set() and loop.time() < until:
            next_look = loop.time() + legacy.LOOK if self._seen else until
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(next_look, until)):
                    await self._changed.wait()
            before, self._seen = self._seen, self._sizes()
            if self._seen != before:
                self._rules_went = True
                self._changed.set()
        self._changed.clear()
        went, self._rules_went = self._rules_went, False
        return went

    def _listen(self, protocol: int, groups: int) -> None:
        sock = self._open_socket(protocol)
        try:
            sock.bind((0, groups))
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        asyncio.get_running_loop().add_reader(sock, self._heard, sock)

    def _heard(self, sock: socket.socket) -> None:
        # An overflow (ENOBUFS) is a change too, and nothing more can be read then.
        with contextlib.suppress(OSError):
            for _ in range(_AT_ONCE):
                self._rules_went |= takes_rules_away(sock.recv(_CHUNK))
        self._changed.set()

    def _heard_of_file(self, watch: FileWatch) -> None:
        if watch.drain():
            self._changed.set()


def takes_rules_away(data: bytes) -> bool:
    """Whether nftables reports that one of our tables, chains or rules was removed.

    Args:
        data: One or more netlink notifications. Ours are recognised by the names they contain.
    """
    offset = 0
    while len(data) - offset >= _HEADER.size:
        length, kind = _HEADER.unpack_from(data, offset)
        if kind & 0xFF in _TAKEN_AWAY and any(name in data[offset : offset + length] for name in _OURS):
            return True
        offset += max(_HEADER.size, (length + 3) & ~3)
    return False


def _open_socket(protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, protocol)
