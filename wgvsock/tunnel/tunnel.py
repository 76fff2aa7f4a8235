"""The tunnel: joins a TUN device, the WireGuard core and a transport, and owns the one timer.

Everything runs in the event loop's thread, in three callbacks: the TUN has packets, a link has datagrams, the timer
fires. Each ends in `_settle`, which carries out what the core has decided in the meantime.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from wgvsock.devices.base import TunDevice
from wgvsock.egress.gate import Gate
from wgvsock.errors import SystemSetupError
from wgvsock.transports.base import Link, Transport
from wgvsock.tunnel.capture import Watcher
from wgvsock.tunnel.inbound import Inbound
from wgvsock.tunnel.outbound import Outbound
from wgvsock.wireguard import Device, DeviceStatistics, DropReason, EndpointChanged, Event, HandshakeFailed, Profile

_log = logging.getLogger(__name__)


class TunnelDrop(StrEnum):
    """Why the tunnel dropped a packet that the core had accepted. The value is the reason in metrics."""

    UNREACHABLE = "unreachable"
    """The peer's endpoint cannot be reached from here: its stream has ended, and only the peer can dial."""
    BACKLOG = "backlog"
    """The peer's stream was blocked with a full send buffer, or was being dialled."""
    OFFLOADED = "offloaded"
    """A super-packet was still in the interface's queue when the offloads were switched off."""
    EGRESS_DENIED = "egress_denied"
    """The egress policy that is measured into the image does not let the packet leave the enclave."""
    KERNEL = "kernel"
    """The TUN refused the write: the interface is down, or its queue is full."""


@dataclass(frozen=True, slots=True)
class TunnelStatistics:
    """A snapshot. All counts are packets since the start.

    Attributes:
        device: The core's own counts.
        own_drops: Packets that the tunnel itself dropped, by reason.
        offloads: Whether the offloads, and with them super-packets, are on.
        super_packets_refused: Super-packets that the TUN accepted only as segments.
        acknowledgements_superseded: TCP acknowledgements that did not go out, because a newer one was in the queue.
    """

    device: DeviceStatistics
    own_drops: Mapping[TunnelDrop, int]
    offloads: bool
    super_packets_refused: int = 0
    acknowledgements_superseded: int = 0

    @property
    def drops(self) -> dict[str, int]:
        """Dropped packets by the reasons of status, metrics and documentation. Reasons without drops are left out.

        A bad virtio_net_hdr is counted under its fault, and not as `DropReason.BAD_VIRTIO_HEADER` as well.
        """
        core = {
            reason.value: count
            for reason, count in self.device.drops.items()
            if reason is not DropReason.BAD_VIRTIO_HEADER
        }
        own = {reason.value: count for reason, count in self.own_drops.items() if count}
        return core | dict(self.device.virtio_header_drops) | own


class Tunnel:
    """Runs one WireGuard interface.

    Use it as ``async with Tunnel(...) as tunnel``, or call `start` and `aclose`. Closing the tunnel closes the TUN and
    the transport.

    Args:
        device: The core. Others may change it in the event loop's thread, and must then call `wake`.
        tun: The interface.
        transport: Carries the datagrams. It must not have been started.
        clock: Monotonic seconds.
        on_event: Called for every event of the core, in order.
        gate: Decides which packets of the TUN may enter the tunnel. None lets all packets pass.
    """

    def __init__(
        self,
        device: Device,
        tun: TunDevice,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._device = device
        self._tun = tun
        self._transport = transport
        self._clock = clock
        self._on_event = on_event
        self._outbound = Outbound(device, tun, transport, clock, gate)
        self._inbound = Inbound(device, tun, self._super_packet_refused, gate)
        self._offloads_usable = tun.packet_headroom > 0
        self._loop: asyncio.AbstractEventLoop
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._ended = asyncio.Event()
        self._failure: SystemSetupError | None = None
        self._watcher: Watcher | None = None

    async def start(self) -> None:
        """Start carrying packets.

        Raises:
            TransportError: The transport cannot listen.
        """
        self._loop = asyncio.get_running_loop()
        await self._transport.start(self._datagrams_received, self._link_writable, self._link_connected)
        self.wake()

    async def aclose(self) -> None:
        """Stop, and close transport and interface. Idempotent."""
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
        """Wait until the tunnel ends, which `aclose` causes.

        Raises:
            SystemSetupError: The interface was removed.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def wake(self) -> None:
        """Apply changes that were made to the core: keys, peers, profiles, endpoints, a handshake to start."""
        peers = self._device.peers.values()
        self._transport.retain({peer.endpoint for peer in peers if peer.endpoint is not None})
        for peer in peers:
            if peer.endpoint is not None:
                self._transport.link_for(peer.endpoint)  # dial now, not with the first packet
        self._choose_offloads()
        self._read_tun()
        self._device.needs_attention = True
        self._settle()

    def send(self, packet: bytes) -> None:
        """Send one packet of our own, with its headroom, like a packet from the kernel.

        The same rules apply: cryptokey routing, the link's limits, and the counting of drops.
        """
        self._outbound.send(packet)
        self._settle()

    def intercept(self, take: Callable[[memoryview, float], bool] | None) -> None:
        """Call `take` with every packet, including its headroom, and the time, before the kernel gets the packet.

        A packet for which it returns True goes no further. None stops the interception.
        """
        self._inbound.take = take

    def watch(self, watcher: Watcher | None) -> None:
        """Show every packet and every message, in both directions, to a watcher. None stops that."""
        self._watcher = watcher
        self._inbound.watch(watcher)
        self._outbound.watch(watcher)

    @property
    def packet_at(self) -> float:
        """When the last packet of any peer came out of the tunnel, on the tunnel's clock, or -inf if none has."""
        return self._inbound.packet_at

    def statistics(self) -> TunnelStatistics:
        """Counts up to now."""
        return TunnelStatistics(
            device=self._device.statistics(),
            own_drops={
                TunnelDrop.UNREACHABLE: self._outbound.dropped_unreachable,
                TunnelDrop.BACKLOG: self._outbound.dropped_backlog,
                TunnelDrop.OFFLOADED: self._outbound.dropped_offloaded,
                TunnelDrop.EGRESS_DENIED: self._outbound.dropped_denied,
                TunnelDrop.KERNEL: self._inbound.dropped_by_kernel,
            },
            super_packets_refused=self._inbound.super_packets_refused,
            acknowledgements_superseded=self._outbound.acknowledgements_superseded,
            offloads=self._outbound.offloads,
        )

    # The three callbacks.

    def _tun_readable(self) -> None:
        try:
            blocked = self._outbound.move_batch()
        except SystemSetupError as error:
            self._fail(error)
            return
        # With one peer, packets queue in the interface, where TCP sees them. With several, a blocked peer must not hold
        # up the others: its packets are dropped when its buffer is full.
        if blocked is not None and len(self._device.peers) == 1:
            self._stop_reading_tun()
        self._settle()

    def _datagrams_received(self, link: Link, datagrams: list[memoryview]) -> None:
        if self._watcher is not None:
            for datagram in datagrams:
                self._watcher.outer(link, datagram, outgoing=False)
        self._inbound.move_batch(link, datagrams, self._clock())
        if self._reading:
            # The kernel often has the answer by now, such as a reply to a ping or an acknowledgement. Looking costs one
            # system call, and another iteration of the loop many.
            self._tun_readable()
        else:
            self._settle()

    def _timer_fired(self) -> None:
        self._timer_due = math.inf
        self._device.handle_timers(self._clock())
        self._device.needs_attention = True  # perhaps nothing was due yet, and the timer has to be set again
        self._settle()

    # Reports of links.

    def _link_writable(self, _link: Link) -> None:
        self._read_tun()

    def _link_connected(self, link: Link) -> None:
        """Start a handshake on every new stream, so that both sides learn to use it."""
        now = self._clock()
        for peer in self._device.peers.values():
            if peer.endpoint is not None and self._transport.link_for(peer.endpoint) is link:
                peer.announce_path(now)
        self._settle()

    # Decisions of the core.

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
                continue  # lost, as on a network: WireGuard's timers send another
            room[: len(datagram)] = datagram
            if self._watcher is not None:
                self._watcher.outer(link, room[: len(datagram)], outgoing=True)
            link.commit(len(datagram))
            link.flush()
        while (event := device.next_event()) is not None:
            self._report(event)
        due = device.next_deadline()
        if due is not None and due < self._timer_due:
            # If a deadline moves back, the timer simply fires early once and is set again.
            self._set_timer(due)

    def _report(self, event: Event) -> None:
        if isinstance(event, HandshakeFailed):
            link = self._transport.link_for(event.peer.endpoint)
            if link is not None:
                link.close("the peer does not answer handshakes")
        elif isinstance(event, EndpointChanged):
            self._read_tun()  # the old link to the peer may have been blocked, and now there is a new one
        if self._on_event is not None:
            self._on_event(event)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._timer_fired)

    def _choose_offloads(self) -> None:
        """Use super-packets only while every peer understands them. The live interface is switched."""
        peers = self._device.peers.values()
        understood = bool(peers) and all(peer.profile is Profile.GSO for peer in peers)
        self._outbound.peers_take_super_packets = understood
        wanted = understood and self._offloads_usable
        if wanted != self._outbound.offloads:
            self._tun.set_offloads(wanted)
            self._outbound.offloads = wanted

    def _super_packet_refused(self) -> None:
        """Turn off the offloads, because this kernel's are broken.

        The peer may still send super-packets, because the profile is part of what was attested. `Inbound` splits those
        that are refused.
        """
        if self._offloads_usable:
            self._offloads_usable = False
            _log.warning("the kernel refuses a well-formed super-packet: the offloads of %s are off", self._tun.name)
            self._choose_offloads()

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
