"""From a link through the core into the TUN device: steps 4 and 5 of egress, and 7 and 8 of ingress."""

from __future__ import annotations

import errno
import functools
import math
from collections.abc import Callable

from wgvsock.devices.base import TunDevice
from wgvsock.egress.gate import Gate
from wgvsock.framing import MAX_NATIVE_DATAGRAM
from wgvsock.transports.base import Link
from wgvsock.tunnel.capture import WatchedTun, Watcher
from wgvsock.tunnel.segmentation import segments
from wgvsock.virtio_net import GSO_NONE, GSO_UDP_L4, HEADER_LENGTH
from wgvsock.wireguard import Device, open_into


class Inbound:
    """Decrypts the datagrams of one read and writes their packets.

    Args:
        device: The WireGuard core.
        tun: The destination of packets. A packet that the kernel refuses is dropped and counted: writing never waits,
            so receiving never does either.
        on_super_packet_refused: Called when the kernel refused a super-packet but accepted its segments.
        gate: Sees every packet before the kernel, so that it can let the answer out. None if there is no gate.

    Attributes:
        take: Called with each packet, headroom included, and the time. Returns True to keep the packet from the kernel.
            None passes every packet to the kernel.
        packet_at: When the last batch with a packet came, in monotonic seconds.
        dropped_by_kernel: Packets that the kernel accepted in no form.
        super_packets_refused: Valid super-packets that the kernel accepted only as segments.
    """

    def __init__(
        self,
        device: Device,
        tun: TunDevice,
        on_super_packet_refused: Callable[[], None] = lambda: None,
        gate: Gate | None = None,
    ) -> None:
        self._device = device
        self._tun: TunDevice = tun
        self._unwatched = tun
        self._segments_udp = tun.packet_headroom > 0 and not tun.udp_segmentation
        self._buffer = memoryview(bytearray(HEADER_LENGTH + MAX_NATIVE_DATAGRAM))
        self._on_super_packet_refused = on_super_packet_refused
        self._hears = None if gate is None else gate.hears
        self.take: Callable[[memoryview, float], bool] | None = None
        self.packet_at = -math.inf
        self.dropped_by_kernel = 0
        self.super_packets_refused = 0

    def watch(self, watcher: Watcher | None) -> None:
        """Show all incoming packets to a watcher. None stops that."""
        self._tun = self._unwatched if watcher is None else WatchedTun(self._unwatched, watcher)

    def move_batch(self, link: Link, datagrams: list[memoryview], now: float) -> None:
        """Write every packet that the datagrams carry. Handshake messages take effect in the core.

        Args:
            link: The datagrams' link.
            datagrams: Complete WireGuard messages, at most `MAX_NATIVE_DATAGRAM` bytes each.
            now: Monotonic seconds.
        """
        device, buffer = self._device, self._buffer
        write = self._tun.write if self.take is None else functools.partial(self._write_unless_taken, now)
        hears = self._hears
        silent = 0
        for datagram in datagrams:
            length = open_into(device, datagram, link, buffer, now)
            if not length:
                silent += 1
                if device.authenticated_endpoint is link:
                    device.authenticated_endpoint = None
                    link.mark_authenticated()  # at once: what follows is from a peer
                continue
            if hears is not None:
                hears(buffer[:length], now)
            if self._segments_udp and buffer[1] == GSO_UDP_L4:
                self._write_pieces(buffer[:length])
            elif not write(buffer[:length]):
                self._write_otherwise(buffer[:length])
        if silent < len(datagrams):
            self.packet_at = now
            link.mark_authenticated()

    def _write_unless_taken(self, now: float, packet: memoryview) -> bool:
        return (self.take is not None and self.take(packet, now)) or self._tun.write(packet)

    def _write_pieces(self, packet: memoryview) -> bool:
        """Write a super-packet as segments, and return whether the kernel accepted any of them."""
        taken = [self._tun.write(piece) for piece in segments(packet)]
        self.dropped_by_kernel += taken.count(False)
        return any(taken)

    def _write_otherwise(self, packet: memoryview) -> None:
        """Write a refused packet as segments: Linux 6.6.44 and 6.10.3 call some valid super-packets malformed.

        The next super-packet is tried whole again, because most are accepted.
        """
        if not self._tun.packet_headroom or packet[1] == GSO_NONE or self._tun.write_error != errno.EINVAL:
            self.dropped_by_kernel += 1
        elif self._write_pieces(packet):
            self.super_packets_refused += 1
            self._on_super_packet_refused()
