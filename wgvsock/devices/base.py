"""The seams to the kernel devices, so that the tunnel and the agent can be tested without one."""

from __future__ import annotations

from typing import Protocol


class TunDevice(Protocol):
    """A layer 3 network interface whose packets we read and write.

    `packet_headroom` bytes (0, or 10 for a virtio_net_hdr) precede each IP packet in both directions.
    """

    @property
    def name(self) -> str:
        """Interface name, such as ``wg0``."""
        ...

    @property
    def packet_headroom(self) -> int:
        """Bytes in front of each IP packet: 0, or 10 with a virtio_net_hdr."""
        ...

    @property
    def udp_segmentation(self) -> bool:
        """Whether it takes UDP super-packets."""
        ...

    def fileno(self) -> int:
        """Descriptor that becomes readable when a packet waits."""
        ...

    def read_into(self, buffer: memoryview) -> int:
        """Read one packet with its headroom; its length in bytes, or 0 when none waits.

        Raises:
            SystemSetupError: The interface is gone.
        """
        ...

    def read_split(self, head: memoryview, rest: memoryview) -> int:
        """Read one packet into two buffers, the second from where the first is full; otherwise as `read_into`."""
        ...

    def write(self, packet: memoryview) -> bool:
        """Write one packet with its headroom; False when the kernel refused it (it is dropped and counted)."""
        ...

    def set_offloads(self, enabled: bool) -> None:
        """With a headroom of 10: allow the kernel to hand over super-packets and open checksums, or forbid both.

        Raises:
            SystemSetupError: The kernel refuses.
        """
        ...

    def close(self) -> None:
        """Close the descriptor, which removes the interface; idempotent."""
        ...


class SecureModule(Protocol):
    """The Nitro Security Module's one operation: CBOR request bytes in, CBOR response bytes out (NSM API)."""

    def request(self, request: bytes) -> bytes:
        """Send one request; blocks up to the driver's own time-out (120 s), so call it in a thread.

        Raises:
            SystemSetupError: The device is missing or refused the request.
        """
        ...
