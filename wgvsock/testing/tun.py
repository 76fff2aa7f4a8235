"""A TUN device in memory: a socket pair replaces the kernel's queue."""

from __future__ import annotations

import errno
import socket

from wgvsock.devices.errors import TunGoneError

_PACKET_ROOM = 66_000


class MemoryTun:
    """Satisfies `wgvsock.devices.base.TunDevice`. The test plays the kernel with `inject` and `take`.

    Args:
        packet_headroom: Bytes: 0, or 10 for a virtio_net_hdr in front of each packet.
        udp_segmentation: Whether the played kernel accepts UDP super-packets.
    """

    write_error = 0

    def __init__(self, packet_headroom: int = 0, *, udp_segmentation: bool = True) -> None:
        self.packet_headroom = packet_headroom
        self.udp_segmentation = udp_segmentation
        self.offloads = False
        self.refuses_writes = False
        self.refuses_super_packets = False  # as Linux 6.6.44 and 6.10.3 refuse some
        self._ours, self._kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._kernels.setblocking(False)

    @property
    def name(self) -> str:
        """See `TunDevice.name`."""
        return "memory0"

    def fileno(self) -> int:
        """See `TunDevice.fileno`."""
        return self._ours.fileno()

    def read_into(self, buffer: memoryview) -> int:
        """See `TunDevice.read_into`."""
        try:
            length = self._ours.recv_into(buffer)
        except BlockingIOError:
            return 0
        if not length:
            raise TunGoneError("the tunnel interface is gone")
        return length

    def write(self, packet: memoryview) -> bool:
        """See `TunDevice.write`."""
        if self.refuses_writes:
            self.write_error = errno.EIO
            return False
        if self.refuses_super_packets and self.packet_headroom and packet[1]:
            self.write_error = errno.EINVAL
            return False
        try:
            self._ours.send(packet)
        except BlockingIOError:
            self.write_error = errno.EAGAIN
            return False
        return True

    def set_offloads(self, enabled: bool) -> None:
        """See `TunDevice.set_offloads`."""
        self.offloads = enabled

    def close(self) -> None:
        """See `TunDevice.close`."""
        self._ours.close()
        self._kernels.close()

    # The kernel's side.

    def inject(self, packet: bytes) -> None:
        """Give the tunnel a packet, with its headroom, from the kernel."""
        self._kernels.send(packet)

    def take(self) -> bytes | None:
        """The next packet, with its headroom, that the tunnel wrote, or None."""
        try:
            return self._kernels.recv(_PACKET_ROOM)
        except BlockingIOError:
            return None

    def remove(self) -> None:
        """Remove the interface."""
        self._kernels.close()
