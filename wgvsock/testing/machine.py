"""A machine in memory for tests of the services: TUN devices, kernel, packet filter, and how a test changes them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar, cast

from wgvsock.addresses import IpAddress, IpNetwork, Port, StreamAddress, TcpAddress
from wgvsock.machine.base import Notifications
from wgvsock.runtime.journal import Performer, Record, Undo
from wgvsock.system import conntrack, netlink, resolver
from wgvsock.system.errors import ClockError
from wgvsock.system.filter import apply as netfilter
from wgvsock.system.filter.apply import Ran
from wgvsock.system.flows import WantedFlows
from wgvsock.system.netlink import Netlink
from wgvsock.system.processor import ProcessorTimes
from wgvsock.system.resolver import ResolverSettings
from wgvsock.system.routing_rule import ROUTING_RULE
from wgvsock.testing.dns import MemoryDnsSockets
from wgvsock.testing.engine import MemoryEngine
from wgvsock.testing.kernel import MemoryFilter, MemoryKernel
from wgvsock.testing.tun import MemoryTun
from wgvsock.transports.errors import ConnectError
from wgvsock.uapi.server import open_control_socket

T = TypeVar("T")
Accepted = Callable[[socket.socket, StreamAddress], None]


class Patience:
    """Replaces `wgvsock.system.watch.KernelWatch`: it reports nothing, so that its user looks at regular intervals."""

    async def wait(self, patience: float) -> bool:
        """See `KernelWatch.wait`."""
        await asyncio.sleep(patience)
        return False


class MemoryListening:
    """Listens in memory until it is closed."""

    def __init__(
        self, places: dict[tuple[IpAddress, int], Accepted], place: tuple[IpAddress, int], accepted: Accepted
    ) -> None:
        self._places, self._place = places, place
        places[place] = accepted

    def close(self) -> None:
        """See `Listening.close`."""
        self._places.pop(self._place, None)


class MemoryMachine:
    """Satisfies `wgvsock.machine.base.EnclaveMachine` and `RelayMachine`.

    Attributes:
        kernel: Interfaces, addresses, routes, forwarding.
        filter: The packet filter.
        tuns: Every TUN device that was opened, the oldest first.
        tools: Paths of the installed programs.
        notifications: The result of `watch`.
        resolver_settings: Settings of the machine's own resolv.conf.
        dns: Sockets for DNS queries.
        flows_forgiven: How many times connection tracking was asked to forgive an interruption.
        flows_wanted: The flows to keep, for each request to delete the others.
        flows_at_most: Size of the connection tracking table.
        connections_left: Successive answers about the number of connections. The last one repeats.
        listening: Whether published ports answer.
        clock_error: Nanoseconds by which the wall clock is ahead of the right time.
        has_hardware_clock: Whether there is a PTP clock.
        worked: Milliseconds that the processors have worked, or None if the kernel does not show it.
        in_tunnel: Listeners on the tunnel's addresses.
        other_end: The machine at the other end of the tunnel, or None.
        address_in_tunnel: The address of this machine as the other end sees it.
        wg_folder: Folder of the control sockets for ``wg``, or None if there are none.
        engines: Every engine that was started, the oldest first.
    """

    def __init__(self) -> None:
        self.kernel = MemoryKernel()
        self.filter = MemoryFilter()
        self.tuns: list[MemoryTun] = []
        self.tools = {"nft": "nft"}
        self.notifications: Notifications = Patience()
        self.resolver_settings = ResolverSettings()
        self.dns = MemoryDnsSockets()
        self.flows_forgiven = 0
        self.flows_wanted: list[WantedFlows] = []
        self.connections_left = [0]
        self.flows_at_most: int | None = None
        self.listening = True
        self.clock_error = 0
        self.has_hardware_clock = True
        self.worked: int | None = 0
        self.in_tunnel: dict[tuple[IpAddress, int], Accepted] = {}
        self.other_end: MemoryMachine | None = None
        self.address_in_tunnel = "10.73.0.1"
        self.wg_folder: Path | None = None
        self.engines: list[MemoryEngine] = []

    def monotonic(self) -> float:
        """See `Machine.monotonic`: the event loop's clock, which may jump (`wgvsock.testing.without_waiting`)."""
        return asyncio.get_running_loop().time()

    def wall_clock(self) -> int:
        """See `Machine.wall_clock`."""
        return time.time_ns() + self.clock_error

    def set_wall_clock(self, unix_time: int) -> None:
        """See `EnclaveMachine.set_wall_clock`."""
        self.clock_error = unix_time - time.time_ns()

    def hardware_clock(self) -> int:
        """See `EnclaveMachine.hardware_clock`. It is always right, if there is one."""
        if not self.has_hardware_clock:
            raise ClockError("there is no hardware clock", why="the test says so", fix="change the test")
        return time.time_ns()

    def processor_times(self) -> ProcessorTimes | None:
        """See `EnclaveMachine.processor_times`. One of two processors works, half of the time for this process."""
        if self.worked is None:
            return None
        return ProcessorTimes(int(self.monotonic() * 1000), self.worked, self.worked // 2, processors=2)

    def random(self, size: int) -> bytes:
        """See `Machine.random`."""
        return os.urandom(size)

    def open_tun(self, name: str, *, packet_headroom: int) -> MemoryTun:
        """See `Machine.open_tun`."""
        self.kernel.mtus.setdefault(name, 1500)
        self.tuns.append(MemoryTun(packet_headroom))
        return self.tuns[-1]

    def open_netlink(self, record: Record) -> AbstractAsyncContextManager[Netlink]:
        """See `Machine.open_netlink`."""
        return cast("AbstractAsyncContextManager[Netlink]", self.kernel.open(record))

    def require_mark(self, tunnel: str, versions: Iterable[int], record: Record) -> bool:
        """See `RelayMachine.require_mark`."""
        record(Undo(ROUTING_RULE, tunnel, ""))
        return self.kernel.require_mark(tunnel, versions)

    def watch(self) -> AbstractContextManager[Notifications]:
        """See `RelayMachine.watch`."""
        return nullcontext(self.notifications)

    def listen_for_wg(self, interface: str) -> tuple[socket.socket, Path] | None:
        """See `Machine.listen_for_wg`. It uses the test's folder, if there is one."""
        if self.wg_folder is None:
            return None
        path = self.wg_folder / f"{interface}.sock"
        return open_control_socket(path), path

    def find_tool(self, name: str) -> str | None:
        """See `RelayMachine.find_tool`."""
        return self.tools.get(name)

    async def run_tool(self, command: Sequence[str], text: str) -> Ran:
        """See `RelayMachine.run_tool`."""
        return await self.filter(command, text)

    async def start_engine(self, packets: socket.socket, orders: socket.socket) -> MemoryEngine:
        """See `RelayMachine.start_engine`."""
        self.engines.append(MemoryEngine(packets.dup(), orders.dup()))
        return self.engines[-1]

    def resolver(self) -> ResolverSettings:
        """See `RelayMachine.resolver`."""
        return self.resolver_settings

    def dns_sockets(self) -> MemoryDnsSockets:
        """See `RelayMachine.dns_sockets`."""
        return self.dns

    def forgive_interruption(self, _networks: Collection[IpNetwork]) -> int:
        """See `RelayMachine.forgive_interruption`."""
        self.flows_forgiven += 1
        return 1

    def connections(self, _networks: Collection[IpNetwork]) -> int:
        """See `RelayMachine.connections`."""
        return self.connections_left.pop(0) if len(self.connections_left) > 1 else self.connections_left[0]

    def conntrack_size(self) -> int | None:
        """See `RelayMachine.conntrack_size`."""
        return self.flows_at_most

    async def delete_stale(self, wanted: WantedFlows) -> Counter[str]:
        """See `RelayMachine.delete_stale`."""
        self.flows_wanted.append(wanted)
        return Counter()

    async def accepts(self, _address: IpAddress, _port: int) -> bool:
        """See `RelayMachine.accepts`."""
        return self.listening

    def listen_in_tunnel(
        self, _interface: str, address: IpAddress, port: int, on_accepted: Accepted
    ) -> MemoryListening:
        """See `EnclaveMachine.listen_in_tunnel`."""
        return MemoryListening(self.in_tunnel, (address, port), on_accepted)

    async def connect_in_tunnel(
        self, _interface: str, address: IpAddress, port: int, *, seconds: float
    ) -> socket.socket:
        """See `RelayMachine.connect_in_tunnel`. It connects to a listener on the machine at the other end."""
        del seconds
        accepted = None if self.other_end is None else self.other_end.in_tunnel.get((address, port))
        if accepted is None:
            raise ConnectError(f"cannot connect to {address}", why="the test says so", fix="change the test")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        accepted(theirs, TcpAddress(self.address_in_tunnel, Port(50000)))
        return ours

    async def in_thread(self, call: Callable[[], T]) -> T:
        """See `RelayMachine.in_thread`. It calls at once, as the clock could jump while a thread works."""
        return call()

    async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ARG002, ASYNC109
        """See `EnclaveMachine.ask_module`. It calls at once, as `in_thread` does."""
        return call()

    def performers(self) -> Mapping[str, Performer]:
        """See `Machine.performers`."""
        flows = conntrack.performers(self.delete_stale)
        marks = {ROUTING_RULE: self.kernel.forget_mark}
        return netlink.performers() | netfilter.performers(self.run_tool) | flows | resolver.performers() | marks
