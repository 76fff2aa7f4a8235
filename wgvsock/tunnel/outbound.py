"""From the TUN device through the core onto a link: steps 1 to 3 of egress, 4 to 6 of ingress.

A packet is read into one buffer, sealed from there straight into the link's send buffer, and sent with the rest of its
batch: two copies by the kernel, one by the cipher, none by us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wgvsock.devices.base import TunDevice
from wgvsock.transports.base import Link, Transport
from wgvsock.tunnel.coalescer import PADDING, Coalescer
from wgvsock.virtio_net import NEEDS_CSUM
from wgvsock.wireguard import Device, Peer

OVERHEAD: Final = 32 + PADDING
"""Bytes that sealing adds at most: transport data header (16), tag (16) and padding."""

SILENCE: Final = 1e-3
"""Seconds without a packet after which the next one is taken to be alone: it is sent at once, as somebody waits for it.
Looking for a second one first, for its batch, would delay it by some 20 microseconds on a processor that has slept."""

BATCH_BYTES: Final = 256 * 1024
BATCH_PACKETS: Final = 128
"""What one turn of the event loop sends at most, so that receiving and timers get their turn: some 0.5 ms of work."""


class Outbound:
    """Moves packets from the TUN to the links until there are none or a link takes no more.

    Args:
        device: The WireGuard core.
        tun: Where packets come from.
        transport: Where they go.
        clock: Monotonic seconds.
    """

    def __init__(self, device: Device, tun: TunDevice, transport: Transport, clock: Callable[[], float]) -> None:
        self._device = device
        self._transport = transport
        self._clock = clock
        self._headroom = tun.packet_headroom
        self._coalescer = Coalescer(tun)
        self._last_packet_at = 0.0
        self.offloads = False
        self.dropped_unreachable = 0
        self.dropped_backlog = 0
        self.dropped_offloaded = 0

    def move_batch(self) -> Link | None:
        """Move up to a batch of packets; the link that blocks now, if one does.

        Raises:
            SystemSetupError: The interface is gone.
        """
        coalescer, peer_for_packet = self._coalescer, self._device.peer_for_packet
        coalescer.enabled = self.offloads
        plain_only = self._headroom and not self.offloads
        now = self._clock()
        touched: list[Link] = []
        endpoint: object = None
        link: Link | None = None
        bytes_left, packets_left = BATCH_BYTES, BATCH_PACKETS
        alone = now - self._last_packet_at > SILENCE
        while (bytes_left > 0 and packets_left > 0) or coalescer.waiting:
            length = coalescer.read()
            if not length:
                break
            bytes_left -= length
            packets_left -= coalescer.segments
            buffer = coalescer.buffer
            if plain_only and (buffer[1] or buffer[0] & NEEDS_CSUM):
                # Queued before the offloads were switched off: only the kernel could still segment or complete it.
                self.dropped_offloaded += 1
                continue
            peer = peer_for_packet(buffer[:length])
            if peer is None:
                continue
            if peer.endpoint is not endpoint or link is None:
                endpoint = peer.endpoint
                link = self._transport.link_for(endpoint)
                if link is not None and link not in touched:
                    touched.append(link)
            datagram = link.reserve(length + OVERHEAD) if link is not None else None
            if link is None or datagram is None:
                self._cannot_send(peer, link, buffer[:length], now)
                continue
            sealed = peer.seal_into(buffer, length, datagram, now)
            if sealed:
                link.commit(sealed)
                if (alone and not coalescer.waiting) or coalescer.drained:
                    break
            else:
                self._device.send_packet(bytes(buffer[:length]), now)
        if touched:
            self._last_packet_at = now
        blocked = None
        for used in touched:
            used.flush()
            if not used.writable:
                blocked = used
        return blocked

    def _cannot_send(self, peer: Peer, link: Link | None, packet: memoryview, now: float) -> None:
        """There is no way to the peer now: a first packet waits in the core for the handshake, the rest is lost."""
        if not peer.has_session(now):
            self._device.send_packet(bytes(packet), now)
        elif link is None:
            self.dropped_unreachable += 1
        else:
            self.dropped_backlog += 1
