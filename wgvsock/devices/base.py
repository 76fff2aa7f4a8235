"""Interfaces to the kernel devices, so that the tunnel and the agent can be tested without one."""

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
        """Whether it accepts UDP super-packets."""
        ...

    @property
    def write_error(self) -> int:
        """Errno of the last `write` that the kernel refused: EAGAIN if its queue was full, 0 if none was refused."""
        ...

    def fileno(self) -> int:
        """The descriptor, readable when a packet is available."""
        ...

    def read_into(self, buffer: memoryview) -> int:
        """Read one packet.

        Args:
            buffer: Takes the headroom and the packet.

        Returns:
            Its length in bytes, or 0 if no packet is available.

        Raises:
            SystemSetupError: The interface is gone.
        """
        ...

    def write(self, packet: memoryview) -> bool:
        """Write one packet with its headroom. False if the kernel refused it: the caller drops and counts it."""
        ...

    def set_offloads(self, enabled: bool) -> None:
        """With a headroom of 10: allow the kernel to hand over super-packets and incomplete checksums, or forbid both.

        Raises:
            SystemSetupError: The kernel refuses.
        """
        ...

    def close(self) -> None:
        """Close the descriptor, which removes the interface. Idempotent."""
        ...


class SecureModule(Protocol):
    """The Nitro Security Module's one operation: CBOR request bytes in, CBOR response bytes out (NSM API)."""

    def request(self, request: bytes) -> bytes:
        """Send one request.

        Blocks for up to the driver's own timeout (120 s), so call it in a thread.

        Args:
            request: CBOR, at most 4096 bytes.

        Returns:
            The response: CBOR, fewer than 12,288 bytes.

        Raises:
            SystemSetupError: The device is missing or refused the request.
        """
        ...
