"""The Linux machine that this process runs on."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Final, TypeVar

from wgvsock.addresses import IpAddress, IpNetwork, Port, StreamAddress, TcpAddress
from wgvsock.devices.base import TunDevice
from wgvsock.devices.nsm import call_in_thread
from wgvsock.devices.tun import open_tun
from wgvsock.dns.sockets import KernelDnsSockets
from wgvsock.errors import TransportError
from wgvsock.machine.base import Child, Listening, Notifications
from wgvsock.runtime.journal import Performer, Record
from wgvsock.system import clock, conntrack, netlink, processor, resolver, routing_rule
from wgvsock.system.filter import apply as netfilter
from wgvsock.system.filter.apply import Ran
from wgvsock.system.flows import WantedFlows
from wgvsock.system.netlink import Netlink
from wgvsock.system.processor import ProcessorTimes
from wgvsock.system.resolver import ResolverSettings
from wgvsock.system.watch import KernelWatch
from wgvsock.telemetry.logs import error_fields
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import connect_stream, listen_stream
from wgvsock.uapi.errors import ControlSocketError
from wgvsock.uapi.server import open_control_socket, socket_path

T = TypeVar("T")

_log = logging.getLogger(__name__)

_PACKAGES: Final = str(Path(__file__).parent.parent.parent)
"""The directory that contains this package, for a child process without our import path."""


class LinuxMachine:
    """See `wgvsock.machine.base.Machine`. Each method delegates to the module in charge."""

    def monotonic(self) -> float:
        """See `Machine.monotonic`."""
        return time.monotonic()

    def wall_clock(self) -> int:
        """See `Machine.wall_clock`."""
        return time.time_ns()

    def set_wall_clock(self, unix_time: int) -> None:
        """See `Machine.set_wall_clock`."""
        clock.set_wall_clock(unix_time)

    def hardware_clock(self) -> int:
        """See `Machine.hardware_clock`."""
        return clock.read_hardware_clock()

    def processor_times(self) -> ProcessorTimes | None:
        """See `Machine.processor_times`."""
        return processor.read_times()

    def random(self, size: int) -> bytes:
        """See `Machine.random`."""
        return os.urandom(size)

    def open_tun(self, name: str, *, packet_headroom: int) -> TunDevice:
        """See `Machine.open_tun`."""
        return open_tun(name, packet_headroom=packet_headroom)

    def open_netlink(self, record: Record) -> AbstractAsyncContextManager[Netlink]:
        """See `Machine.open_netlink`."""
        return netlink.open_netlink(record)

    def require_mark(self, tunnel: str, versions: Iterable[int], record: Record) -> bool:
        """See `Machine.require_mark`."""
        return routing_rule.require_mark(tunnel, versions, record)

    def watch(self) -> AbstractContextManager[Notifications]:
        """See `Machine.watch`."""
        return KernelWatch()

    def listen_for_wg(self, interface: str) -> tuple[socket.socket, Path] | None:
        """See `Machine.listen_for_wg`."""
        path = socket_path(interface)
        try:
            return open_control_socket(path), path
        except ControlSocketError as error:
            _log.info("wg cannot show the interface", extra=error_fields(error, interface=interface))
            return None

    def find_tool(self, name: str) -> str | None:
        """See `Machine.find_tool`."""
        return shutil.which(name)

    async def run_tool(self, command: Sequence[str], text: str) -> Ran:
        """See `Machine.run_tool`."""
        return await netfilter.run_tool(command, text)

    async def start_engine(self, packets: socket.socket, orders: socket.socket) -> Child:
        """See `Machine.start_engine`. The engine inherits none of our variables, and only these descriptors."""
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
        """See `Machine.resolver`."""
        return resolver.read()

    def dns_sockets(self) -> KernelDnsSockets:
        """See `Machine.dns_sockets`."""
        return KernelDnsSockets()

    def forgive_interruption(self, networks: Collection[IpNetwork]) -> int:
        """See `Machine.forgive_interruption`."""
        return conntrack.forgive_interruption(networks)

    def connections(self, networks: Collection[IpNetwork]) -> int:
        """See `Machine.connections`."""
        return conntrack.count_connections(networks)

    def conntrack_size(self) -> int | None:
        """See `Machine.conntrack_size`."""
        return conntrack.table_size()

    async def delete_stale(self, wanted: WantedFlows) -> Counter[str]:
        """See `Machine.delete_stale`."""
        return await asyncio.to_thread(conntrack.delete_stale, wanted)

    async def accepts(self, address: IpAddress, port: int) -> bool:
        """See `Machine.accepts`."""
        try:
            deadline = asyncio.get_running_loop().time() + 1.0
            sock = await connect_stream(TcpAddress(str(address), Port(port)), deadline=deadline)
        except TransportError:
            return False
        sock.close()
        return True

    def listen_in_tunnel(
        self, interface: str, address: IpAddress, port: int, on_accepted: Callable[[socket.socket, StreamAddress], None]
    ) -> Listening:
        """See `Machine.listen_in_tunnel`."""
        own = TcpAddress(str(address), Port(port))
        return Listener(listen_stream(own, interface=interface), None, on_accepted)

    async def connect_in_tunnel(
        self, interface: str, address: IpAddress, port: int, *, seconds: float
    ) -> socket.socket:
        """See `Machine.connect_in_tunnel`."""
        deadline = asyncio.get_running_loop().time() + seconds
        return await connect_stream(TcpAddress(str(address), Port(port)), deadline=deadline, interface=interface)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """See `Machine.in_thread`."""
        return await asyncio.to_thread(call)

    async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 - see `call_in_thread`
        """See `Machine.ask_module`."""
        return await call_in_thread(call, timeout=timeout)

    def performers(self) -> Mapping[str, Performer]:
        """See `Machine.performers`."""
        return (
            netlink.performers()
            | netfilter.performers(self.run_tool)
            | conntrack.performers(self.delete_stale)
            | resolver.performers()
            | routing_rule.performers()
        )
