"""The tunnel: joins a TUN device, the WireGuard core and a transport, and owns the one timer.

Everything runs in the event loop's thread, in three callbacks: the TUN has packets, a link has datagrams, the timer
fires. Each ends in `_settle`, which carries out what the core has decided meanwhile, if it has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from wgvsock.devices.base import TunDevice
from wgvsock.errors import SystemSetupError
from wgvsock.transports.base import Link, Transport
from wgvsock.tunnel.inbound import Inbound
from wgvsock.tunnel.outbound import Outbound
from wgvsock.wireguard import Device, DeviceStatistics, EndpointChanged, Event, HandshakeFailed, Profile


@dataclass(frozen=True, slots=True)
class TunnelStatistics:
    """A snapshot; all counts are packets since the start.

    Attributes:
        device: The core's own counts.
        dropped_unreachable: The peer's endpoint cannot be reached from here: its stream has ended, and it has to dial.
        dropped_backlog: The peer's stream was blocked and its send buffer full, or it was being dialled.
        dropped_offloaded: Super-packets that waited in the interface when the offloads were switched off.
        dropped_by_kernel: The TUN refused the write: interface down, or its queue full.
        offloads: Whether super-packets are on now.
    """

    device: DeviceStatistics
    dropped_unreachable: int
    dropped_backlog: int
    dropped_offloaded: int
    dropped_by_kernel: int
    offloads: bool


class Tunnel:
    """Runs one WireGuard interface.

    Use it as ``async with Tunnel(...) as tunnel``, or call `start` and `aclose`; both TUN and transport are closed with
    it.

    Args:
        device: The core. Others may change it from the event loop's thread and then call `wake`.
        tun: The interface.
        transport: Carries the datagrams; not yet started.
        clock: Monotonic seconds.
        on_event: Called for every event of the core, in order.
    """

    def __init__(
        self,
        device: Device,
        tun: TunDevice,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._device = device
        self._tun = tun
        self._transport = transport
        self._clock = clock
        self._on_event = on_event
        self._outbound = Outbound(device, tun, transport, clock)
        self._inbound = Inbound(device, tun)
        self._loop: asyncio.AbstractEventLoop
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._ended = asyncio.Event()
        self._failure: SystemSetupError | None = None

    async def start(self) -> None:
        """Begin to carry packets.

        Raises:
            TransportError: The transport cannot listen.
        """
        self._loop = asyncio.get_running_loop()
        await self._transport.start(self._datagrams_received, self._link_writable, self._link_connected)
        self.wake()

    async def aclose(self) -> None:
        """Stop, and close transport and interface; idempotent."""
        self._stop_reading_tun()
        if self._timer is not None:
            self._timer.cancel()
        await self._transport.aclose()
        self._tun.close()
        self._ended.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def wait_ended(self) -> None:
        """Wait until the tunnel ends: returns after `aclose`.

        Raises:
            SystemSetupError: Somebody removed the interface.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def wake(self) -> None:
        """Carry out what somebody else changed in the core: keys, peers, profiles, endpoints, a handshake to start."""
        peers = self._device.peers.values()
        self._transport.retain({peer.endpoint for peer in peers if peer.endpoint is not None})
        for peer in peers:
            if peer.endpoint is not None:
                self._transport.link_for(peer.endpoint)  # dial now, not with the first packet
        self._choose_offloads()
        self._read_tun()
        self._device.needs_attention = True
        self._settle()

    def statistics(self) -> TunnelStatistics:
        """Counts up to now."""
        return TunnelStatistics(
            device=self._device.statistics(),
            dropped_unreachable=self._outbound.dropped_unreachable,
            dropped_backlog=self._outbound.dropped_backlog,
            dropped_offloaded=self._outbound.dropped_offloaded,
            dropped_by_kernel=self._inbound.dropped_by_kernel,
            offloads=self._outbound.offloads,
        )

    # The three callbacks.

    def _tun_readable(self) -> None:
        try:
            blocked = self._outbound.move_batch()
        except SystemSetupError as error:
            self._fail(error)
            return
        # With one peer its queue stands in the interface, where TCP sees it. With several, a blocked one must not hold
        # up the others: its packets are dropped when its buffer is full.
        if blocked is not None and len(self._device.peers) == 1:
            self._stop_reading_tun()
        self._settle()

    def _datagrams_received(self, link: Link, datagrams: list[memoryview]) -> None:
        self._inbound.move_batch(link, datagrams, self._clock())
        if self._reading:
            # The kernel often has the answer by now: to a ping, or an acknowledgement. Looking costs a system call,
            # another turn of the loop many.
            self._tun_readable()
        else:
            self._settle()

    def _timer_fired(self) -> None:
        self._timer_due = math.inf
        self._device.handle_timers(self._clock())
        self._device.needs_attention = True  # nothing may have been due yet, and the timer has to be set again
        self._settle()

    # What links report.

    def _link_writable(self, _link: Link) -> None:
        self._read_tun()

    def _link_connected(self, link: Link) -> None:
        """Shake hands on every new stream: the remote learns that it is the one to answer on, and so do we."""
        now = self._clock()
        for peer in self._device.peers.values():
            if peer.endpoint is not None and self._transport.link_for(peer.endpoint) is link:
                peer.retry_handshake(now)
        self._settle()

    # What the core has decided.

    def _settle(self) -> None:
        """Send the core's own datagrams, report its events, and set the timer for its next deadline."""
        device = self._device
        if not device.needs_attention:
            return
        device.needs_attention = False
        for endpoint, datagram in device.datagrams_to_send():
            link = self._transport.link_for(endpoint)
            room = link.reserve(len(datagram)) if link is not None else None
            if link is None or room is None:
                continue  # lost, as on a network; WireGuard's timers send another
            room[: len(datagram)] = datagram
            link.commit(len(datagram))
            link.flush()
        while (event := device.next_event()) is not None:
            self._report(event)
        due = device.next_deadline()
        if due is not None and due < self._timer_due:
            # A deadline that moved away costs nothing: the timer fires early once and is set anew.
            self._set_timer(due)

    def _report(self, event: Event) -> None:
        if isinstance(event, HandshakeFailed):
            link = self._transport.link_for(event.peer.endpoint)
            if link is not None:
                link.close("the peer answers no handshake")
        elif isinstance(event, EndpointChanged):
            self._read_tun()  # the way to the peer may have been blocked, and now there is another
        if self._on_event is not None:
            self._on_event(event)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._timer_fired)

    def _choose_offloads(self) -> None:
        """Super-packets only while every peer understands them; the change works on the live interface."""
        peers = self._device.peers.values()
        wanted = bool(peers) and all(peer.profile is Profile.GSO for peer in peers)
        if self._tun.packet_headroom and wanted != self._outbound.offloads:
            self._tun.set_offloads(wanted)
            self._outbound.offloads = wanted

    def _read_tun(self) -> None:
        if not self._reading and self._failure is None:
            self._reading = True
            self._loop.add_reader(self._tun.fileno(), self._tun_readable)

    def _stop_reading_tun(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._tun.fileno())

    def _fail(self, error: SystemSetupError) -> None:
        self._stop_reading_tun()
        self._failure = error
        self._ended.set()
