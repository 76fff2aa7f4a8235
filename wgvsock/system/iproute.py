"""pyroute2's rtnetlink socket, without the answers that nobody waits for, and with one dump at a time."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import Any, Final

from wgvsock.system.package import import_parts

import_parts("pyroute2")  # as a whole it is 166 modules, and rtnetlink needs 100 of them

from pyroute2.iproute.linux import AsyncIPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

__all__ = ["Dumps", "IPRoute", "NetlinkError"]

_ATTEMPTS: Final = 20
_PAUSE: Final = 0.02  # seconds; the rest of a dump whose reader has gone arrives within a few turns

_SEQUENCE: Final = struct.Struct("=8xI")  # of struct nlmsghdr (netlink(7))


class IPRoute(AsyncIPRoute):  # type: ignore[misc]
    """Drops the answers to requests that have ended.

    The kernel acknowledges every request, even one that pyroute2 (0.9.7) considers complete after its only answer.
    pyroute2 keeps the acknowledgement for a reader of the socket itself, and here there is none. Each query for an
    interface would cost 1.5 KB for the life of the process.
    """

    def enqueue(self, data: bytes, addr: object) -> None:
        """Accept one datagram, unless its request has ended."""
        (sequence,) = _SEQUENCE.unpack_from(data)
        if sequence in self.msg_queue.queues:
            super().enqueue(data, addr)


class Dumps:
    """Dumps the kernel's tables one at a time: it refuses a second dump on the same socket with EBUSY.

    Args:
        ipr: The socket.
    """

    def __init__(self, ipr: Any) -> None:
        self._ipr = ipr
        self._turn = asyncio.Lock()

    async def __call__(self, what: str, **request: Any) -> list[Any]:
        """Return all messages of a dump.

        Args:
            what: ``link``, ``addr`` or ``route``.
            request: Fields that filter the dump.

        Raises:
            NetlinkError: The kernel refused.
        """
        ask = getattr(self._ipr, what)
        async with self._turn:
            for _ in range(_ATTEMPTS):
                try:
                    return [message async for message in await ask("dump", **request)]
                except NetlinkError as error:
                    if error.code != errno.EBUSY:
                        raise
                await asyncio.sleep(_PAUSE)  # a dump whose reader was cancelled is still arriving
            raise NetlinkError(errno.EBUSY, "another dump does not end")
