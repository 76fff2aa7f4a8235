"""The Linux machine that a Relay runs on."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeVar

from wgvsock.addresses import IpAddress, IpNetwork, Port, TcpAddress
from wgvsock.dns.sockets import KernelDnsSockets
from wgvsock.errors import TransportError
from wgvsock.machine.base import Child, Notifications
from wgvsock.machine.linux import LinuxMachine
from wgvsock.runtime.journal import Performer, Record
from wgvsock.system import conntrack, resolver, routing_rule
from wgvsock.system.filter import apply as netfilter
from wgvsock.system.filter.apply import Ran
from wgvsock.system.flows import WantedFlows
from wgvsock.system.resolver import ResolverSettings
from wgvsock.system.watch import KernelWatch
from wgvsock.transports.sockets import connect_stream

T = TypeVar("T")

_PACKAGES: Final = str(Path(__file__).parent.parent.parent)
"""The directory that contains this package, for a child process without our import path."""


class LinuxRelayMachine(LinuxMachine):
    """See `wgvsock.machine.base.RelayMachine`."""

    def require_mark(self, tunnel: str, versions: Iterable[int], record: Record) -> bool:
        """See `RelayMachine.require_mark`."""
        return routing_rule.require_mark(tunnel, versions, record)

    def watch(self) -> AbstractContextManager[Notifications]:
        """See `RelayMachine.watch`."""
        return KernelWatch()

    def find_tool(self, name: str) -> str | None:
        """See `RelayMachine.find_tool`."""
        return shutil.which(name)

    async def run_tool(self, command: Sequence[str], text: str) -> Ran:
        """See `RelayMachine.run_tool`."""
        return await netfilter.run_tool(command, text)

    async def start_engine(self, packets: socket.socket, orders: socket.socket) -> Child:
        """See `RelayMachine.start_engine`. The engine inherits none of our variables, and only these descriptors."""
        descriptors = (packets.fileno(), orders.fileno())
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "wgvsock.uplink", *map(str, descriptors)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,  # only the relay handles an operator's ^C
            env={"PYTHONPATH": _PACKAGES, "MALLOC_ARENA_MAX": "1"},
        )

    def resolver(self) -> ResolverSettings:
        """See `RelayMachine.resolver`."""
        return resolver.read()

    def dns_sockets(self) -> KernelDnsSockets:
        """See `RelayMachine.dns_sockets`."""
        return KernelDnsSockets()

    def forgive_interruption(self, networks: Collection[IpNetwork]) -> int:
        """See `RelayMachine.forgive_interruption`."""
        return conntrack.forgive_interruption(networks)

    def connections(self, networks: Collection[IpNetwork]) -> int:
        """See `RelayMachine.connections`."""
        return conntrack.count_connections(networks)

    def conntrack_size(self) -> int | None:
        """See `RelayMachine.conntrack_size`."""
        return conntrack.table_size()

    async def delete_stale(self, wanted: WantedFlows) -> Counter[str]:
        """See `RelayMachine.delete_stale`."""
        return await asyncio.to_thread(conntrack.delete_stale, wanted)

    async def accepts(self, address: IpAddress, port: int) -> bool:
        """See `RelayMachine.accepts`."""
        try:
            deadline = asyncio.get_running_loop().time() + 1.0
            sock = await connect_stream(TcpAddress(str(address), Port(port)), deadline=deadline)
        except TransportError:
            return False
        sock.close()
        return True

    async def connect_in_tunnel(
        self, interface: str, address: IpAddress, port: int, *, seconds: float
    ) -> socket.socket:
        """See `RelayMachine.connect_in_tunnel`."""
        deadline = asyncio.get_running_loop().time() + seconds
        return await connect_stream(TcpAddress(str(address), Port(port)), deadline=deadline, interface=interface)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """See `RelayMachine.in_thread`."""
        return await asyncio.to_thread(call)

    def performers(self) -> Mapping[str, Performer]:
        """See `Machine.performers`."""
        return {
            **super().performers(),
            **netfilter.performers(self.run_tool),
            **conntrack.performers(self.delete_stale),
            **routing_rule.performers(),
        }
