"""The stream transport: listens, dials, and hands out links over any kind of stream."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final

from wgvsock.addresses import Cid, HybridVsockAddress, StreamAddress, TcpAddress, UnixAddress, VsockAddress
from wgvsock.errors import LocalProtocolError
from wgvsock.framing import Framing
from wgvsock.transports.base import DatagramsReceived, Link
from wgvsock.transports.dialler import Dialler
from wgvsock.transports.link import LinkCallbacks, StreamLink
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import connect_stream, listen_stream

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for one attempt, the monitor's CONNECT included."""

AUTHENTICATION_TIMEOUT: Final = 30.0
"""Seconds that an accepted stream may stay open without an authenticated message: six WireGuard handshake attempts."""

MAX_ACCEPTED: Final = 64
"""Accepted streams whose peers have proved themselves. Each costs up to 768 KiB of buffers."""

MAX_STRANGERS: Final = 128
"""Accepted streams whose peers have not yet proved themselves. Each costs up to 64 KiB. A new one replaces the oldest
of them, never a peer's. In a flood of 1,000 connections a second, a peer still has an eighth of a second for its first
message."""

_log = logging.getLogger(__name__)


class StreamTransport:
    """A `Transport` over vsock, hybrid, Unix and TCP streams.

    An endpoint is a link of this transport or a stream address. An address is dialled from the first `link_for` until
    `retain` drops it.

    Args:
        listen: Addresses to accept streams on.
        framing: The framing of all streams.
        allowed_cids: CIDs that may connect over vsock, or None for any.
        to_host: Dial vsock with VMADDR_FLAG_TO_HOST.
    """

    def __init__(
        self,
        *,
        listen: Iterable[StreamAddress] = (),
        framing: Framing = Framing.NATIVE,
        allowed_cids: frozenset[Cid] | None = None,
        to_host: bool = False,
    ) -> None:
        self._listen = tuple(listen)
        self._framing = framing
        self._allowed_cids = allowed_cids
        self._to_host = to_host
        self._listeners: list[Listener] = []
        self._diallers: dict[StreamAddress, Dialler] = {}
        self._strangers: dict[StreamLink, asyncio.TimerHandle] = {}  # in order of arrival, with the deadline
        self._accepted: set[StreamLink] = set()
        self._callbacks: LinkCallbacks | None = None

    async def start(
        self,
        on_datagrams: DatagramsReceived,
        on_writable: Callable[[Link], None],
        on_connected: Callable[[Link], None],
    ) -> None:
        """See `Transport.start`."""
        self._callbacks = LinkCallbacks(
            on_datagrams=on_datagrams,
            on_writable=on_writable,
            on_connected=on_connected,
            on_authenticated=self._link_authenticated,
            on_closed=self._link_closed,
        )
        await self.set_listen(self._listen)

    async def set_listen(self, listen: Iterable[StreamAddress]) -> None:
        """Listen on these addresses instead of the present ones. Streams live on.

        Raises:
            TransportError: One of them cannot be bound. The present ones stay.
        """
        addresses = tuple(listen)
        kept = dict(zip(self._listen, self._listeners, strict=False))
        opened: dict[StreamAddress, socket.socket] = {}
        try:
            for address in addresses:
                if address not in kept:
                    opened[address] = listen_stream(address)
        except BaseException:
            for sock in opened.values():
                sock.close()
            raise
        for address in kept.keys() - set(addresses):
            kept.pop(address).close()
        for address, sock in opened.items():
            kept[address] = Listener(sock, self._allowed_cids, self._accept)
        self._listen = addresses
        self._listeners = [kept[address] for address in addresses]

    def link_for(self, endpoint: object) -> StreamLink | None:
        """See `Transport.link_for`."""
        if isinstance(endpoint, StreamLink):
            return endpoint if endpoint.connected or endpoint.dialled else None
        if isinstance(endpoint, VsockAddress | UnixAddress | HybridVsockAddress | TcpAddress):
            dialler = self._diallers.get(endpoint)
            return (dialler or self._dial(endpoint)).link
        return None

    def retain(self, endpoints: Collection[object]) -> None:
        """See `Transport.retain`."""
        for address, dialler in list(self._diallers.items()):
            if address not in endpoints and dialler.link not in endpoints:
                del self._diallers[address]
                dialler.cancel()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        diallers = list(self._diallers.values())
        self._diallers.clear()
        await asyncio.gather(*(dialler.aclose() for dialler in diallers))
        for link in (*self._accepted, *self._strangers):
            link.close("the tunnel is shutting down")

    def _dial(self, address: StreamAddress) -> Dialler:
        loop = asyncio.get_running_loop()

        async def connect() -> socket.socket:
            return await connect_stream(address, deadline=loop.time() + CONNECT_TIMEOUT, to_host=self._to_host)

        link = StreamLink(address, self._framing, self._started(), dialled=True)
        dialler = Dialler(link, connect, random.random)
        self._diallers[address] = dialler
        return dialler

    def _accept(self, sock: socket.socket, address: StreamAddress) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            next(iter(self._strangers)).close("a newer stream replaces it")
        _log.info("stream %s accepted", address)
        link = StreamLink(address, self._framing, self._started(), dialled=False)
        self._strangers[link] = asyncio.get_running_loop().call_later(
            AUTHENTICATION_TIMEOUT, self._deadline_passed, link
        )
        link.attach(sock)

    def _deadline_passed(self, link: StreamLink) -> None:
        link.close(f"no authenticated message in {AUTHENTICATION_TIMEOUT:g} s")

    def _link_authenticated(self, link: StreamLink) -> None:
        deadline = self._strangers.pop(link, None)
        if deadline is None:
            return
        deadline.cancel()
        if len(self._accepted) >= MAX_ACCEPTED:
            link.close(f"{MAX_ACCEPTED} streams of peers are already open")
            return
        self._accepted.add(link)

    def _link_closed(self, link: StreamLink) -> None:
        if not link.dialled:
            if deadline := self._strangers.pop(link, None):
                deadline.cancel()
            self._accepted.discard(link)
            return
        dialler = self._diallers.get(link.address)
        if dialler is not None:
            dialler.stream_closed()

    def _started(self) -> LinkCallbacks:
        if self._callbacks is None:
            raise LocalProtocolError("a transport was used before its start")
        return self._callbacks
