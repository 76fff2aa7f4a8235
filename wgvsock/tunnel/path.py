"""Runs a path probe through a tunnel: connects the probe's decisions to packets, the clock and the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from wgvsock.addresses import IpAddress
from wgvsock.runtime.tasks import wait_for_event
from wgvsock.tunnel.probe import INTERVAL, PathProbe, PathSnapshot
from wgvsock.tunnel.tunnel import Tunnel


class Path:
    """The path to the enclave behind a tunnel with one peer.

    A request enters the tunnel like a packet from the TUN, and its reply is intercepted before the TUN. The tunnel
    looks for replies only while a request is outstanding.

    Args:
        probe: Decides when to send a request and what its outcome means.
        tunnel: Carries requests and replies.
        clock: Monotonic seconds. The tunnel's clock.
    """

    def __init__(self, probe: PathProbe, tunnel: Tunnel, clock: Callable[[], float]) -> None:
        self._probe = probe
        self._tunnel = tunnel
        self._clock = clock
        self._changed = asyncio.Event()
        self._asked: dict[int, asyncio.Future[float | None]] = {}
        probe.on_reply = self._replied

    @property
    def destination(self) -> IpAddress | None:
        """The address to probe, or None if there is no session."""
        return self._probe.destination

    def begin(self, source: IpAddress, destination: IpAddress, enclave: str) -> None:
        """Start probing an enclave with which there is a session. See `PathProbe.begin`."""
        self._probe.begin(source, destination, enclave, self._clock())
        self._changed.set()

    def end(self) -> None:
        """Stop probing, because the session is gone."""
        self._probe.end()
        self._tunnel.intercept(None)

    def snapshot(self) -> PathSnapshot:
        """The current state of the path."""
        self._probe.observe(self._clock(), self._tunnel.packet_at)
        return self._probe.snapshot()

    async def run(self) -> NoReturn:
        """Send requests when they are due, until cancelled."""
        while True:
            now = self._clock()
            request = self._probe.handle_time(now, self._tunnel.packet_at)
            if request is not None:
                self._send(request)
            if not self._probe.waits:
                self._tunnel.intercept(None)
            await wait_for_event(self._changed, min(max(0.0, self._probe.next_at() - now), INTERVAL))

    async def ask(self) -> float | None:
        """Send one request now.

        Returns:
            The round-trip time in seconds, or None if there is no reply in time or no session.
        """
        asked = self._probe.ask(self._clock())
        if asked is None:
            return None
        sequence, request = asked
        reply: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._asked[sequence] = reply
        self._send(request)
        self._changed.set()  # there is a new timeout to wait for
        try:
            return await reply
        finally:
            del self._asked[sequence]

    def _send(self, request: bytes) -> None:
        self._tunnel.intercept(self._take)
        self._tunnel.send(request)

    def _take(self, packet: memoryview, now: float) -> bool:
        taken = self._probe.take(packet, now)
        if not self._probe.waits:
            self._tunnel.intercept(None)
        return taken

    def _replied(self, sequence: int, seconds: float | None) -> None:
        reply = self._asked.get(sequence)
        if reply is not None and not reply.done():
            reply.set_result(seconds)
