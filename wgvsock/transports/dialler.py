"""Keeps one address connected: dial, wait for the end of the stream, back off, dial again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from wgvsock.errors import TransportError
from wgvsock.transports.link import StreamLink

INITIAL_BACKOFF: Final = 0.5
MAXIMUM_BACKOFF: Final = 30.0
"""Seconds between two attempts: a restarted enclave is soon back, a dead one costs next to nothing."""

BACKOFF_JITTER: Final = 0.25
"""Each delay is lengthened by up to this share of it, so that the relays of one node do not dial in step."""

_log = logging.getLogger(__name__)


class Backoff:
    """Delays that double from 0.5 s to 30 s, each with some jitter.

    Args:
        random: Uniform random numbers from 0 to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = INITIAL_BACKOFF

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt."""
        delay = self._next
        self._next = min(delay * 2, MAXIMUM_BACKOFF)
        return delay * (1 + BACKOFF_JITTER * self._random())

    def reset(self) -> None:
        """Begin at the shortest delay again."""
        self._next = INITIAL_BACKOFF


class Dialler:
    """Owns the one link to a dialled address and gives it stream after stream.

    Connecting proves nothing: a stream that ends before an authenticated message came over it counts as a failed
    attempt, or a listener that accepts and closes would be dialled thousands of times a second.

    Args:
        link: The link to keep connected; its `on_closed` has to call `stream_closed`.
        connect: Makes one connected socket, or raises TransportError.
        random: Uniform random numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self, link: StreamLink, connect: Callable[[], Awaitable[socket.socket]], random: Callable[[], float]
    ) -> None:
        self.link = link
        self._connect = connect
        self._backoff = Backoff(random)
        self._closed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"dial {link.address}")

    def stream_closed(self) -> None:
        """The link's stream has ended."""
        self._closed.set()

    async def aclose(self) -> None:
        """Stop dialling and close the link."""
        self.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def cancel(self) -> None:
        """Stop dialling and close the link; the task ends soon after."""
        self._task.cancel()
        self.link.close("it is not needed any more")

    async def _run(self) -> None:
        reported = ""
        while True:
            try:
                sock = await self._connect()
            except TransportError as error:
                if str(error) != reported:  # one line a change, not one an attempt
                    reported = str(error)
                    _log.warning("%s", reported)
            else:
                reported = ""
                await self._carry(sock)
            await asyncio.sleep(self._backoff.next_delay())

    async def _carry(self, sock: socket.socket) -> None:
        _log.info("stream %s connected", self.link.address)
        self._closed.clear()
        self.link.attach(sock)
        await self._closed.wait()
        if self.link.authenticated:
            self._backoff.reset()
