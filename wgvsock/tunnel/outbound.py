"""From the TUN device through the core onto a link: steps 1 to 3 of egress, and 4 to 6 of ingress.

A packet is read into one buffer, sealed from there straight into the link's send buffer, and sent with the rest of its
batch. The kernel copies it twice, the cipher once, and we never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from wgvsock.devices.base import TunDevice
from wgvsock.egress.gate import Gate
from wgvsock.transports.base import Link, Transport
from wgvsock.tunnel.capture import WatchedTransport, Watcher
from wgvsock.tunnel.coalescer import PADDING, Coalescer
from wgvsock.tunnel.segmentation import segments
from wgvsock.virtio_net import NEEDS_CSUM, is_cut_too_fine
from wgvsock.wireguard import Device, Peer, peer_for_packet, seal_into

OVERHEAD: Final = 32 + PADDING
"""Bytes that sealing adds at most: transport data header (16), tag (16) and padding."""

SILENCE: Final = 1e-3
"""Seconds without a packet after which the next one is assumed to be alone and is sent at once, because somebody is
waiting for it. Looking for a second packet to batch with it would delay it by about 20 microseconds on a processor that
has slept."""

BATCH_BYTES: Final = 256 * 1024
BATCH_PACKETS: Final = 128
"""The batch of one iteration of the event loop: about 0.5 ms of work. Twice as much gains little, and a ping under
load takes a fifth longer."""


class Outbound:
    """Moves packets from the TUN to the links until there are none or a link accepts no more.

    Args:
        device: The WireGuard core.
        tun: The source of packets.
        transport: Their destination.
        clock: Monotonic seconds.
        gate: Decides which packets of the TUN may go out. None lets all packets pass.

    Attributes:
        batch_bytes: Bytes to send in one iteration of the event loop, so that receiving and timers get their turn.
        batch_packets: Packets to send in one iteration.
        offloads: Whether the interface hands over super-packets and incomplete checksums.
        peers_take_super_packets: Whether every peer accepts super-packets. Those still in the interface's queue may
            then go out even if the offloads are off by now.
        dropped_unreachable: Packets for a peer that cannot be reached from here.
        dropped_backlog: Packets for a peer whose link has no space.
        dropped_offloaded: Packets that need offloads which not every peer supports: super-packets and incomplete
            checksums.
        dropped_denied: Packets that the gate refused.
    """

    def __init__(
        self,
        device: Device,
        tun: TunDevice,
        transport: Transport,
        clock: Callable[[], float],
        gate: Gate | None = None,
    ) -> None:
        self._device = device
        self._transport: Transport = transport
        self._clock = clock
        self._headroom = tun.packet_headroom
        self._coalescer = Coalescer(tun)
        self._last_packet_at = 0.0
        self.batch_bytes = BATCH_BYTES
        self.batch_packets = BATCH_PACKETS
        self.offloads = False
        self.peers_take_super_packets = False
        self.dropped_unreachable = 0
        self.dropped_backlog = 0
        self.dropped_offloaded = 0
        self.dropped_denied = 0
        self._unwatched = (transport, None if gate is None else gate.passes)
        self._passes = self._unwatched[1]

    @property
    def acknowledgements_superseded(self) -> int:
        """TCP acknowledgements that a newer one in the interface's queue replaced."""
        return self._coalescer.superseded

    def watch(self, watcher: Watcher | None) -> None:
        """Show all outgoing packets to a watcher. None stops that."""
        self._transport, self._passes = transport, passes = self._unwatched
        if watcher is None:
            return
        self._transport = WatchedTransport(transport, watcher)

        def seen(packet: memoryview, now: float) -> bool:
            watcher.inner(packet, outgoing=True)
            return passes is None or passes(packet, now)

        self._passes = seen

    def move_batch(self) -> Link | None:
        """Move up to one batch of packets.

        Returns:
            A link that is now blocked, or None.

        Raises:
            SystemSetupError: The interface is gone.
        """
        coalescer, device = self._coalescer, self._device
        coalescer.enabled = self.offloads
        headroom = self._headroom
        passes = self._passes
        plain_only = headroom and not self.offloads and not self.peers_take_super_packets
        now = self._clock()
        touched: list[Link] = []
        endpoint: object = None
        link: Link | None = None
        bytes_left, packets_left = self.batch_bytes, self.batch_packets
        alone = now - self._last_packet_at > SILENCE
        while (within := bytes_left > 0 and packets_left > 0) or coalescer.waiting:
            length = coalescer.read(ahead=within)
            if not length:
                break
            bytes_left -= length
            packets_left -= coalescer.segments
            buffer = coalescer.buffer
            packet = buffer[:length]
            if plain_only and (buffer[1] or buffer[0] & NEEDS_CSUM):
                # Queued before the offloads were switched off. Only the kernel could still segment or complete it.
                self.dropped_offloaded += 1
                continue
            if passes is not None and not passes(packet, now):
                self.dropped_denied += 1
                continue
            if headroom and buffer[1] and is_cut_too_fine(packet):
                used = self._send_pieces(packet, now)
                if used is not None and used not in touched:
                    touched.append(used)
                continue
            peer = peer_for_packet(device, packet)
            if peer is None:
                continue
            if peer.endpoint is not endpoint or link is None:
                endpoint = peer.endpoint
                link = self._transport.link_for(endpoint)
                if link is not None and link not in touched:
                    touched.append(link)
            datagram = link.reserve(length + OVERHEAD) if link is not None else None
            if link is None or datagram is None:
                self._cannot_send(peer, link, packet, now)
                continue
            sealed = seal_into(peer, buffer, length, datagram, now)
            if sealed:
                link.commit(sealed)
                if (alone and not coalescer.waiting) or coalescer.drained:
                    break
            else:
                device.send_packet(bytes(packet), now)
        if touched:
            self._last_packet_at = now
        blocked = None
        for each in touched:
            each.flush()
            if not each.writable:
                blocked = each
        return blocked

    def send(self, packet: bytes) -> None:
        """Send one packet of our own, with its headroom, as if it had been read from the TUN.

        Without a session the packet is not queued, where it would displace another packet, but a handshake is started.
        A pending handshake is left alone: if it fails, the peer gets a new stream.
        """
        now = self._clock()
        peer = peer_for_packet(self._device, memoryview(packet))
        if peer is None:
            return
        if peer.has_session(now):
            self._send_each(peer, [memoryview(packet)], len(packet), now)
        elif peer.handshake.pending is None:
            peer.initiate_handshake(now)

    def _send_pieces(self, packet: memoryview, now: float) -> Link | None:
        """Send a super-packet as segments, because the far end would refuse it whole. Returns the link."""
        peer = peer_for_packet(self._device, packet)
        return None if peer is None else self._send_each(peer, segments(packet), len(packet), now)

    def _send_each(self, peer: Peer, packets: Iterable[memoryview], longest: int, now: float) -> Link | None:
        """Send packets of at most `longest` bytes to one peer, outside the batch. Returns the link."""
        link = self._transport.link_for(peer.endpoint)
        room = memoryview(bytearray(longest + PADDING))
        for packet in packets:
            length = len(packet)
            room[:length] = packet
            datagram = link.reserve(length + OVERHEAD) if link is not None else None
            if link is None or datagram is None:
                self._cannot_send(peer, link, packet, now)
            elif sealed := seal_into(peer, room, length, datagram, now):
                link.commit(sealed)
            else:
                self._device.send_packet(bytes(packet), now)
        if link is not None:
            link.flush()  # several such packets in one batch would fill its buffer
        return link

    def _cannot_send(self, peer: Peer, link: Link | None, packet: memoryview, now: float) -> None:
        """Handle a packet for a peer that cannot be reached now.

        Without a session the core queues it for the handshake. Otherwise it is dropped and counted.
        """
        if not peer.has_session(now):
            self._device.send_packet(bytes(packet), now)
        elif link is None:
            self.dropped_unreachable += 1
        else:
            self.dropped_backlog += 1
