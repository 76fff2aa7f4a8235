"""Observes a tunnel's packets during a capture. Without a capture, this code is not in the packets' path."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Protocol

from wgvsock.devices.base import TunDevice
from wgvsock.transports.base import DatagramsReceived, Link, Transport

_MAX_LINKS: Final = 128
"""Links to remember: a stream that is cut and dialled again is a new link, and a capture may last for days."""


class Watcher(Protocol):
    """Observes packets. The views are valid only during the call."""

    def inner(self, packet: memoryview, *, outgoing: bool) -> None:
        """Observe an IP packet, after its headroom, into the tunnel (`outgoing`) or out of it."""
        ...

    def outer(self, link: Link, datagram: memoryview, *, outgoing: bool) -> None:
        """Observe a WireGuard message on a link."""
        ...


class WatchedLink:
    """Wraps a link and shows the watcher everything that is sent."""

    def __init__(self, link: Link, watcher: Watcher) -> None:
        self._link = link
        self._watcher = watcher
        self._room: memoryview | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def reserve(self, size: int) -> memoryview | None:
        """See `Link.reserve`."""
        self._room = self._link.reserve(size)
        return self._room

    def commit(self, length: int) -> None:
        """See `Link.commit`."""
        if self._room is not None and length:
            self._watcher.outer(self._link, self._room[:length], outgoing=True)
        self._room = None
        self._link.commit(length)


class WatchedTransport:
    """Wraps a transport and its links. Each link is wrapped only once, so that a batch recognises it."""

    def __init__(self, transport: Transport, watcher: Watcher) -> None:
        self._transport = transport
        self._watcher = watcher
        self._links: dict[Link, WatchedLink] = {}

    def link_for(self, endpoint: object) -> Any:
        """See `Transport.link_for`."""
        link = self._transport.link_for(endpoint)
        if link is None:
            return None
        if link not in self._links:
            if len(self._links) >= _MAX_LINKS:
                self._links.clear()
            self._links[link] = WatchedLink(link, self._watcher)
        return self._links[link]

    def retain(self, endpoints: Collection[object]) -> None:
        """See `Transport.retain`."""
        self._transport.retain(endpoints)

    async def start(self, on_datagrams: DatagramsReceived, on_writable: Any, on_connected: Any) -> None:
        """See `Transport.start`."""
        await self._transport.start(on_datagrams, on_writable, on_connected)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._transport.aclose()


class WatchedTun:
    """Wraps an interface and shows the watcher every packet that is written."""

    def __init__(self, tun: TunDevice, watcher: Watcher) -> None:
        self._tun = tun
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tun, name)

    def write(self, packet: memoryview) -> bool:
        """See `TunDevice.write`."""
        self._watcher.inner(packet, outgoing=False)
        return self._tun.write(packet)
