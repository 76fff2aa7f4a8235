"""The uplink without privileges: an engine terminates the enclave's flows and carries them over ordinary sockets.

There is no interface, no packet filter and no forwarding, so nothing on this machine is changed. The relay applies the
policy (`wgvsock.relay.uplink.mouth`). The engine runs only while the uplink is open. Before attestation, and after
trust has ended, there is no socket that could carry anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random as pseudorandom
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, NoReturn

from wgvsock.addresses import IpAddress
from wgvsock.dns.sockets import LoopbackDnsSockets
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import TCP, UDP, Policy
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.interface import Uplink, find_uplink, refuse_overlap
from wgvsock.relay.enclaves.names import forwards
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.base import UplinkSnapshot
from wgvsock.relay.uplink.egress import Egress
from wgvsock.relay.uplink.engine import EngineProcess
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.relay.uplink.nat import published_ports
from wgvsock.relay.uplink.surroundings import SETTLE, Lookout, look_around
from wgvsock.system.filter.egress_listing import Denied, Judged
from wgvsock.system.filter.rules import Crowd
from wgvsock.system.netlink import Netlink
from wgvsock.telemetry.logs import error_fields
from wgvsock.uplink.orders import Begin, Port, Publish

BACKEND: Final = "userspace"

TUNNEL_MTU: Final = 65_000
"""Default MTU of the tunnel in bytes. No physical network carries the tunnel's packets, because connections end in the
engine, and each packet costs the same whatever its size."""

LOOK: Final = 20.0
"""Seconds between two checks without a notification. The kernel reports changes of routes, addresses and resolv.conf to
any process, but notifications can be lost."""

_LONGEST_PATH: Final = 107  # sockaddr_un (unix(7)), less its NUL

_log = logging.getLogger(__name__)


class NewFlows:
    """Limits the rate of new flows. A burst may have one second's worth of them.

    Args:
        rate: Flows per second.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left = float(rate)
        self._at = 0.0

    def __call__(self, now: float) -> str | None:
        """Count one more flow at `now`, in seconds. Returns None if it may begin, and otherwise the limit."""
        self._left = min(self.rate, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return Crowd.NEW_FLOWS.value
        self._left -= 1
        return None


class GateJudge:
    """Lets `Egress` use a gate in place of a packet filter. The gate looks up pins and counts flows itself.

    Args:
        gate: The gate.
        clock: Returns monotonic seconds on the gate's clock.
    """

    def __init__(self, gate: Gate, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._clock = clock

    async def pin(self, addresses: Collection[IpAddress], forgotten: Collection[IpAddress] = ()) -> None:
        """See `wgvsock.relay.uplink.egress.Judge.pin`. Nothing is left to do, because the gate reads the pins."""

    async def judged(self) -> Judged:
        """See `wgvsock.relay.uplink.egress.Judge.judged`."""
        now, seen = self._clock(), self._gate.snapshot()
        denied = [
            Denied(
                one.destination,
                one.protocol,
                one.port if one.protocol in {TCP, UDP} else 0,
                one.count,
                now - one.at,
            )
            for one in seen.refused
        ]
        return Judged(0, Counter(seen.allowed) + Counter(seen.denied), tuple(denied))


class UserspaceUplink:
    """The uplink of one enclave in user space, with the interface of `wgvsock.relay.uplink.kernel.KernelUplink`.

    Args:
        netlink: Reads addresses and routes, which needs no privilege.
        machine: Starts the engine, and has the clock.
        mouth: The relay's end of the tunnel.
        names: The sockets on which DNS queries arrive.
        reports: Path of the Unix socket that is forwarded to the agent's reports.
    """

    def __init__(
        self, netlink: Netlink, machine: RelayMachine, mouth: Mouth, names: LoopbackDnsSockets, reports: str
    ) -> None:
        self.uplink: Uplink
        self.egress = Egress(machine.monotonic)
        self.tell: Callable[[bytes], object] = lambda _: None
        self._netlink = netlink
        self._machine = machine
        self._mouth = mouth
        self._names = names
        self._reports = reports if len(reports.encode()) <= _LONGEST_PATH else ""
        self._engine = EngineProcess(machine, mouth.engine, mouth.drain, pseudorandom.random)
        self._new_flows = NewFlows(1)
        self._gate = Gate(
            Policy(),
            self._refused,
            mouth.packet_headroom,
            pins=self.egress.pins,
            crowd=self._crowd,
        )
        self._spec: EnclaveSpec
        self._tunnel: TunnelConfig
        self._lookout = Lookout(machine)
        self._problem: WgvsockError | None = None
        self._turn = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether packets may pass."""
        return self._mouth.gate is not None and self._engine.is_running

    @property
    def problem(self) -> WgvsockError | None:
        """What is wrong with this machine, or with the engine while one should run."""
        return self._problem or self._engine.problem

    async def find(self, spec: EnclaveSpec) -> Uplink:
        """See `KernelUplink.find`.

        Raises:
            UplinkError: There is no default route.
            NetlinkSetupError: The configured interface does not exist.
        """
        self._lookout.begin()
        self.uplink = await self._find(spec)
        return self.uplink

    async def prepare(self, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
        """See `KernelUplink.prepare`. Nothing on the machine is changed, and nothing passes yet.

        Raises:
            ConfigurationError: The tunnel's prefix is in use on this machine.
        """
        self.egress.attach(GateJudge(self._gate, self._machine.monotonic))
        await self._adopt(spec, tunnel)

    async def adopt(self, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
        """See `KernelUplink.adopt`.

        Raises:
            WgvsockError: The configuration cannot be applied.
        """
        async with self._turn:
            await self._adopt(spec, tunnel)
            if self._mouth.gate is not None:
                await self._engine.start(self._begin(), self._publication())

    async def open(self) -> None:
        """Let packets pass.

        Raises:
            EngineStartError: The engine does not start.
        """
        async with self._turn:
            if self._mouth.gate is None:
                self._mouth.open(self._gate)  # before the engine, whose first packet may be a client's
            try:
                await self._engine.start(self._begin(), self._publication())
            except BaseException:
                self._mouth.shut()
                raise

    async def close(self) -> None:
        """Let nothing pass, and end the engine with all its sockets."""
        async with self._turn:
            self._mouth.shut()
            self._gate.forget()
            await self._engine.stop()
            if self._reports:
                with contextlib.suppress(OSError):
                    os.unlink(self._reports)  # noqa: PTH108 - an entry in a directory in memory

    async def leave(self) -> None:
        """See `KernelUplink.leave`. Nothing is left for the next relay."""
        await self.part()

    async def part(self) -> None:
        """See `KernelUplink.part`. Both ends of each connection are reset."""
        async with self._turn:
            if self._mouth.gate is not None:
                await self._engine.finish()
        await self.close()

    async def forgive_interruption(self) -> None:
        """See `KernelUplink.forgive_interruption`. Nothing is to be done, because the engine's TCP retransmits."""

    async def leave_to_others(self) -> None:
        """See `KernelUplink.leave_to_others`. There are no changes to release."""
        await self.close()

    def connections(self) -> int:
        """Number of the enclave's TCP connections, as `wgvsock.system.conntrack.count_connections` counts them."""
        return self._engine.report.tcp

    def snapshot(self) -> UplinkSnapshot | None:
        """See `KernelUplink.snapshot`."""
        if not hasattr(self, "_spec"):
            return None
        return UplinkSnapshot(
            is_open=self.is_open,
            owner=self._spec.owner,
            backend=BACKEND,
            interfaces=self.uplink.name,
            mtu=self._tunnel.mtu,
            published=tuple(map(str, self._ports())) if self.is_open else (),
            repairs=Counter(),
            deleted_flows=Counter(),
            contested=(),
            problem=self.problem,
            egress=self.egress.snapshot(),
            engine=self._engine.snapshot(self._spec.uplink.max_connections),
        )

    # Maintenance.

    async def watch(self, changed: Callable[[], None]) -> NoReturn:
        """See `KernelUplink.watch`."""
        with self._machine.watch() as kernel:
            while True:
                await kernel.wait(LOOK)
                await asyncio.sleep(SETTLE)
                await self._lookout.look(self.keep, lambda: self.uplink, changed)

    async def keep(self) -> None:
        """See `KernelUplink.keep`. There is nothing to repair, only changes to follow."""
        try:
            self.uplink = await self._find(self._spec)
            site = await look_around(self._netlink, self._spec, self._tunnel)
        except WgvsockError as error:
            if self._problem is None or str(self._problem) != str(error):
                _log.warning("there is no uplink", extra=error_fields(error))
            self._problem = error
            return
        self._problem = None
        self.egress.site = site
        self._gate.place(site)
        await self.egress.look()

    async def _adopt(self, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
        await refuse_overlap(self._netlink, spec, tunnel)
        self._spec, self._tunnel = spec, tunnel
        site, policy = await look_around(self._netlink, self._spec, self._tunnel), spec.egress.policy()
        self.egress.adopt(policy, site)
        self._gate.place(site)
        self._gate.adopt(policy)
        if self._new_flows.rate != spec.egress.max_new_flows:
            self._new_flows = NewFlows(spec.egress.max_new_flows)
        names = False
        with contextlib.suppress(WgvsockError):
            names = forwards(spec, self._machine.resolver())
        self._mouth.place(tunnel.gateways, forwards=names)

    async def _find(self, spec: EnclaveSpec) -> Uplink:
        found = await find_uplink(self._netlink, spec.nat.uplink)
        # Whether this machine forwards IPv6 does not matter, because sockets need no forwarding.
        versions = found.versions | {6} if found.unset_sysctls else found.versions
        return replace(found, mtu=TUNNEL_MTU, versions=versions, unset_sysctls=())

    def _begin(self) -> Begin:
        report_port = self._spec.application.report_port
        return Begin(
            addresses=tuple(address.ip for address in self._spec.enclave.addresses),
            gateways=self._tunnel.gateways,
            max_connections=self._spec.uplink.max_connections,
            dns_port=self._names.port,
            reports=self._reports if report_port else "",
            report_port=report_port,
        )

    def _publication(self) -> Publish:
        return Publish(self._ports(), draining=self._spec.draining)

    def _ports(self) -> tuple[Port, ...]:
        return tuple(
            Port(port.protocol, port.port, port.destination, port.destination_port)
            for port in published_ports(self._spec)
        )

    def _crowd(self, now: float) -> str | None:
        return self._new_flows(now)

    def _refused(self, packet: memoryview) -> None:
        self.tell(bytes(packet))
