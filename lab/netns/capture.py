"""A capture at an interface of a namespace of this machine."""

from __future__ import annotations

import contextlib
import socket

from lab.errors import LabError
from lab.guest.packets import CapturedPacket, dropped, open_packet_socket, read_packet
from lab.netns import namespaces
from lab.topology import Point
from lab.watch.capture import PacketCapture


class NamespaceCapture(PacketCapture):
    """A packet socket that stays in the namespace in which it was opened. See `lab.watch.capture.PacketCapture`."""

    def __init__(self, point: Point, namespace: str, interface: str) -> None:
        self.point = point
        try:
            self._socket: socket.socket | None = namespaces.inside(namespace, lambda: open_packet_socket(interface))
        except OSError as error:
            raise LabError(f"cannot capture at {interface} of {namespace}", why=str(error)) from None
        self._packets: list[CapturedPacket] = []

    def packets(self) -> list[CapturedPacket]:
        """Return every packet since the start.

        Raises:
            LabError: The kernel's buffer was too small, and packets are missing.
        """
        self._drain()
        return self._packets

    def _drain(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # ENETDOWN: the interface is gone, but its packets are here
            while packet := read_packet(self._socket):
                self._packets.append(packet)
        if lost := dropped(self._socket):
            raise LabError(f"the capture lost {lost} packets", why="its buffer was full")

    def close(self) -> None:
        """Read what is there, and stop."""
        if self._socket is not None:
            self._drain()
            self._socket.close()
            self._socket = None
