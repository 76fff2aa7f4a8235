"""A user-space uplink's engine in memory: the test plays its process, which reports at once."""

from __future__ import annotations

import asyncio
import signal
import socket

from wgvsock.uplink.orders import MAX_MESSAGE, Begin, Publish, Report, decode_order


class MemoryEngine:
    """Satisfies `wgvsock.machine.base.Child`.

    Args:
        packets: The engine's end of the socket for packets.
        orders: The engine's end of the socket for orders.

    Attributes:
        begun: The first order, once it has been read.
        ports: The last order to publish ports.
        status: Exit status, or None while it is running.
    """

    pid = 4711

    def __init__(self, packets: socket.socket, orders: socket.socket) -> None:
        self.packets = packets
        self.orders = orders
        self.begun: Begin | None = None
        self.ports: Publish | None = None
        self.is_to_end = False
        self.status: int | None = None
        self._ended = asyncio.Event()
        orders.setblocking(False)
        self.report()

    def report(self, report: Report | bytes | None = None) -> None:
        """Send a report, by default that it works."""
        told = report if report is not None else Report(version="4.7.0", connections=3, tcp=2, resident=1 << 24)
        self.orders.send(told.encode() if isinstance(told, Report) else told)

    def read_orders(self) -> None:
        """Read all orders that have arrived."""
        while True:
            try:
                message = self.orders.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            if not message:
                return
            order = decode_order(message)
            if isinstance(order, Begin):
                self.begun = order
            elif isinstance(order, Publish):
                self.ports = order
            else:
                self.is_to_end = True

    def die(self, status: int = -signal.SIGKILL) -> None:
        """End with an exit status, as if killed."""
        if self.status is None:
            self.status = status
            self.read_orders()
            self.orders.close()
            self.packets.close()
            self._ended.set()

    async def wait(self) -> int:
        """See `Child.wait`."""
        await self._ended.wait()
        assert self.status is not None  # noqa: S101 - it has ended
        return self.status

    def kill(self) -> None:
        """See `Child.kill`."""
        if self.status is not None:
            raise ProcessLookupError
        self.die()
