"""Keeps one address connected: dials, waits for the end of the stream, backs off, and dials again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from wgvsock.errors import TransportError
from wgvsock.runtime.backoff import Backoff
from wgvsock.transports.link import StreamLink

RECENT: Final = 60.0
RECENT_BACKOFF: Final = 0.5
"""For `RECENT` seconds after a remote has proved itself, we wait at most `RECENT_BACKOFF` seconds between attempts. The
remote exists and was reachable: what keeps us out now, such as a flood of connections, is best met by retrying."""

_log = logging.getLogger(__name__)


class Dialler:
    """Owns the one link to a dialled address and gives it one stream after another.

    Connecting proves nothing: a stream that ends before an authenticated message arrives counts as a failed attempt.
    Otherwise a listener that accepts and closes would be dialled thousands of times a second.

    Args:
        link: The link to keep connected. Its `on_closed` must call `stream_closed`.
        connect: Returns a connected socket, or raises TransportError.
        random: Uniform random numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self, link: StreamLink, connect: Callable[[], Awaitable[socket.socket]], random: Callable[[], float]
    ) -> None:
        self.link = link
        self._connect = connect
        self._backoff = Backoff(random)
        self._closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._proved_at = float("-inf")  # when the last stream with an authenticated message ended
        self._task = self._loop.create_task(self._run(), name=f"dial {link.address}")

    def stream_closed(self) -> None:
        """Note that the link's stream has ended."""
        self._closed.set()

    async def aclose(self) -> None:
        """Stop dialling and close the link."""
        self.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def cancel(self) -> None:
        """Stop dialling and close the link. The task ends soon after."""
        self._task.cancel()
        self.link.close("it is no longer needed")

    async def _run(self) -> None:
        reported = ""
        while True:
            begun = self._loop.time()
            try:
                sock = await self._connect()
            except TransportError as error:
                if str(error) != reported:  # log changes, not every attempt
                    reported = str(error)
                    _log.warning("%s", reported)
            else:
                reported = ""
                await self._carry(sock, self._loop.time() - begun)
            recently = self._loop.time() - self._proved_at < RECENT
            await asyncio.sleep(self._backoff.next_delay(RECENT_BACKOFF if recently else None))

    async def _carry(self, sock: socket.socket, connect_seconds: float) -> None:
        _log.info("stream %s connected", self.link.address)
        self._closed.clear()
        self.link.attach(sock, connect_seconds)
        await self._closed.wait()
        if self.link.authenticated:
            self._backoff.reset()
            self._proved_at = self._loop.time()
