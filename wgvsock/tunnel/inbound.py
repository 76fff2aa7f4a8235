"""From a link through the core into the TUN device: steps 4 and 5 of egress, 7 and 8 of ingress."""

from __future__ import annotations

from wgvsock.devices.base import TunDevice
from wgvsock.framing import MAX_NATIVE_DATAGRAM
from wgvsock.transports.base import Link
from wgvsock.tunnel.udp_segmentation import segments
from wgvsock.virtio_net import GSO_UDP_L4, HEADER_LENGTH
from wgvsock.wireguard import Device


class Inbound:
    """Opens the datagrams of one read and writes their packets.

    Args:
        device: The WireGuard core.
        tun: Where packets go. A packet that the kernel refuses is dropped and counted: writing never waits, so that
            receiving never does.
    """

    def __init__(self, device: Device, tun: TunDevice) -> None:
        self._device = device
        self._tun = tun
        self._segments_udp = tun.packet_headroom > 0 and not tun.udp_segmentation
        self._buffer = memoryview(bytearray(HEADER_LENGTH + MAX_NATIVE_DATAGRAM))
        self.dropped_by_kernel = 0

    def move_batch(self, link: Link, datagrams: list[memoryview], now: float) -> None:
        """Move every packet that the datagrams carry; handshakes and the like take effect in the core."""
        open_into, write, buffer = self._device.open_into, self._tun.write, self._buffer
        for datagram in datagrams:
            length = open_into(datagram, link, buffer, now)
            if not length:
                continue
            if self._segments_udp and buffer[1] == GSO_UDP_L4:
                self.dropped_by_kernel += sum(not write(packet) for packet in segments(buffer[:length]))
            elif not write(buffer[:length]):
                self.dropped_by_kernel += 1
        if not link.authenticated and self._has_proved_itself(link, now):
            link.mark_authenticated()

    def _has_proved_itself(self, link: Link, now: float) -> bool:
        """Whether a peer that answers on this link was authenticated by this batch."""
        return any(peer.last_authenticated >= now and peer.endpoint == link for peer in self._device.peers.values())
