"""What a service needs of its machine. In production it is the real machine, in tests one in memory.

Only a Relay needs most of it, and only its machine (`wgvsock.machine.relay`) loads what provides that.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from wgvsock.addresses import IpAddress, IpNetwork, StreamAddress
from wgvsock.devices.base import TunDevice
from wgvsock.runtime.journal import Performer, Record
from wgvsock.system.netlink import Netlink

if TYPE_CHECKING:  # what one of the two needs, and the other does not load
    from wgvsock.dns.sockets import DnsSockets
    from wgvsock.system.filter.apply import Ran
    from wgvsock.system.flows import WantedFlows
    from wgvsock.system.processor import ProcessorTimes
    from wgvsock.system.resolver import ResolverSettings

T = TypeVar("T")


class Notifications(Protocol):
    """Reports changes in the kernel. See `wgvsock.system.watch.KernelWatch`."""

    async def wait(self, patience: float) -> bool:
        """Wait for a change, at most `patience` seconds. Returns whether rules of ours may be gone."""
        ...


class Listening(Protocol):
    """A listening socket. See `wgvsock.transports.listener.Listener`."""

    def close(self) -> None:
        """Stop listening. Accepted streams live on."""
        ...


class Child(Protocol):
    """A started process, such as `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int:
        """Its process identifier."""
        ...

    async def wait(self) -> int:
        """Wait for its end and return its exit status, or -N if signal N ended it."""
        ...

    def kill(self) -> None:
        """Kill it.

        Raises:
            ProcessLookupError: It has already ended.
        """
        ...


class Machine(Protocol):
    """What both services need: clock, entropy, TUN and kernel."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps: the event loop's."""
        ...

    def wall_clock(self) -> int:
        """Unix time in nanoseconds."""
        ...

    def random(self, size: int) -> bytes:
        """`size` bytes of entropy for keys and nonces."""
        ...

    def open_tun(self, name: str, *, packet_headroom: int) -> TunDevice:
        """See `wgvsock.devices.tun.open_tun`."""
        ...

    def open_netlink(self, record: Record) -> AbstractAsyncContextManager[Netlink]:
        """See `wgvsock.system.netlink.open_netlink`."""
        ...

    def listen_for_wg(self, interface: str) -> tuple[socket.socket, Path] | None:
        """Listen where ``wg`` looks for an interface's control socket.

        Returns:
            The listening socket and its path, or None if that is not possible. Everything else still works then.
        """
        ...

    def performers(self) -> Mapping[str, Performer]:
        """The functions that undo changes to this machine, for a `wgvsock.runtime.journal.Journal`."""
        ...


class EnclaveMachine(Machine, Protocol):
    """What the Enclave needs in addition: its clocks, its module, and a port in the tunnel."""

    def set_wall_clock(self, unix_time: int) -> None:
        """Set the wall clock to a Unix time in nanoseconds.

        Raises:
            ClockError: The kernel refused.
        """
        ...

    def hardware_clock(self) -> int:
        """The time of the hypervisor's PTP clock, as Unix time in nanoseconds.

        Raises:
            ClockError: The clock does not exist or cannot be read.
        """
        ...

    def processor_times(self) -> ProcessorTimes | None:
        """See `wgvsock.system.processor.read_times`."""
        ...

    def listen_in_tunnel(
        self, interface: str, address: IpAddress, port: int, on_accepted: Callable[[socket.socket, StreamAddress], None]
    ) -> Listening:
        """Accept TCP connections to a tunnel's own address that arrive through its interface.

        Raises:
            ListenError: The address cannot be bound.
        """
        ...

    async def ask_module(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 - see `call_in_thread`
        """See `wgvsock.devices.nsm.call_in_thread`.

        Raises:
            NsmError: It took longer than `timeout` seconds.
        """
        ...


class RelayMachine(Machine, Protocol):
    """What the Relay needs in addition: packet filter, connection tracking, the engine, resolver and names."""

    def require_mark(self, tunnel: str, versions: Iterable[int], record: Record) -> bool:
        """See `wgvsock.system.routing_rule.require_mark`."""
        ...

    def watch(self) -> AbstractContextManager[Notifications]:
        """Watch for changes in the kernel's network."""
        ...

    def find_tool(self, name: str) -> str | None:
        """The path of a program on PATH, or None if it is not installed."""
        ...

    async def run_tool(self, command: Sequence[str], text: str) -> Ran:
        """See `wgvsock.system.filter.apply.RunTool`."""
        ...

    async def start_engine(self, packets: socket.socket, orders: socket.socket) -> Child:
        """Start the user-space uplink's engine (`wgvsock.uplink`) with these ends of two pairs.

        Raises:
            OSError: The process cannot be started.
        """
        ...

    def resolver(self) -> ResolverSettings:
        """The settings in this machine's resolv.conf.

        Raises:
            ResolverError: It cannot be read.
        """
        ...

    def dns_sockets(self) -> DnsSockets:
        """The sockets on which an enclave's DNS queries arrive, and over which they are forwarded."""
        ...

    def forgive_interruption(self, networks: Collection[IpNetwork]) -> int:
        """See `wgvsock.system.conntrack.forgive_interruption`. Blocks for milliseconds."""
        ...

    def connections(self, networks: Collection[IpNetwork]) -> int:
        """See `wgvsock.system.conntrack.count_connections`. Blocks for milliseconds."""
        ...

    def conntrack_size(self) -> int | None:
        """See `wgvsock.system.conntrack.table_size`."""
        ...

    async def delete_stale(self, wanted: WantedFlows) -> Counter[str]:
        """See `wgvsock.system.conntrack.delete_stale`. Runs in a thread, because it may take seconds."""
        ...

    async def accepts(self, address: IpAddress, port: int) -> bool:
        """Whether a TCP connection to this address is accepted within a second."""
        ...

    async def connect_in_tunnel(
        self, interface: str, address: IpAddress, port: int, *, seconds: float
    ) -> socket.socket:
        """Open a non-blocking TCP connection that only uses a tunnel's interface.

        Raises:
            ConnectError: The remote refused, is unreachable, or did not answer within `seconds`.
        """
        ...

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run a blocking call in a thread."""
        ...
