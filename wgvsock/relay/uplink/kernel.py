"""The uplink through the kernel: keeps wg0, forwarding and packet filter rules in the wanted state.

Other programs also change this machine: Docker, firewalld and kubelet rewrite rules, CNIs move routes, and operators
change sysctls. `keep` compares the wanted state with the kernel's and repairs the differences. `watch` calls it
whenever the kernel reports a change, and periodically for changes that the kernel does not report.

The order matters. The start closes the packet filter before it enables forwarding. The stop disables forwarding before
it removes the rules, because the journal undoes changes in reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

from wgvsock.devices.base import TunDevice
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.interface import (
    Uplink,
    confined_versions,
    find_uplink,
    first_addresses,
    look_at_forwarding,
    refuse_overlap,
    set_up_tunnel,
    warn_of_ipv6,
)
from wgvsock.relay.errors import ObstacleError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.base import UplinkSnapshot
from wgvsock.relay.uplink.egress import Egress
from wgvsock.relay.uplink.nat import Nat, make_ruleset
from wgvsock.relay.uplink.surroundings import SETTLE, Lookout, look_around
from wgvsock.runtime.journal import Scope
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import KnownFacts, Netfilter, choose_backend
from wgvsock.system.filter.probe import make_probe
from wgvsock.system.filter.rules import Ruleset
from wgvsock.system.netlink import Netlink
from wgvsock.telemetry.logs import error_fields, fields

SLOW_LOOK: Final = 20.0
"""Seconds between two checks of what the kernel does not report, such as a replaced ip_tables rule. A check takes three
calls of nft, which cost an idle relay more than anything else."""

RETRY: Final = 1.0  # seconds after a check that found a problem, which may have been temporary
FIGHT: Final = (5, 30.0)
"""Number of repairs of one kind, and the seconds within which they mean that another program undoes each repair."""

PROBES: Final = 2
"""Missing probes before another program is blamed. The first probe may still be in transit, or the counter may have
been reset with it."""

FIGHT_PAUSE: Final = 5.0
"""Seconds between two repairs in that case. Traffic may stop, but the relay does not keep the machine busy."""

_log = logging.getLogger(__name__)


class KernelUplink:
    """The uplink of one enclave through the kernel.

    Args:
        netlink: Configures interfaces, addresses, routes and sysctls.
        journal: Records changes to the machine.
        machine: Runs the packet filter's tools, and has notifications and the clock.
        tun: The tunnel's interface, for probes; None for no probes.
    """

    def __init__(self, netlink: Netlink, journal: Scope, machine: RelayMachine, tun: TunDevice | None = None) -> None:
        self.nat: Nat
        self.uplink: Uplink
        self.egress = Egress(machine.monotonic)
        self.repairs: Counter[str] = Counter()
        self.problem: WgvsockError | None = None
        self._netlink = netlink
        self._journal = journal
        self._machine = machine
        self._tun = tun
        self._probes_seen: dict[int, int] = {}
        self._probe_numbers = itertools.count()
        self._spec: EnclaveSpec
        self._tunnel: TunnelConfig
        self._lookout = Lookout(machine)
        self._before: tuple[Fact, ...] = ()  # this machine's sysctls before any relay changed them
        self._conntrack_size: int | None = None
        self._marked: tuple[int, ...] = ()  # IP versions for which unmarked packets are not routed
        self._recent: deque[tuple[float, str]] = deque(maxlen=64)
        self._fights: set[str] = set()
        self._look_at_egress = 0.0
        self._turn = asyncio.Lock()

    async def find(self, spec: EnclaveSpec) -> Uplink:
        """Find the uplink, which `prepare` needs.

        Raises:
            UplinkError: There is no default route.
            NetlinkSetupError: The configured interface does not exist.
        """
        self._lookout.begin()
        self.uplink = await find_uplink(self._netlink, spec.nat.uplink)
        warn_of_ipv6(spec, self.uplink)
        return self.uplink

    async def prepare(self, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
        """Set up the closed packet filter, then enable forwarding.

        Only tunnel packets are forwarded, and only while the enclave is attested.

        Raises:
            ConfigurationError: The tunnel's prefix is in use on this machine.
            SystemSetupError: The kernel refused.
        """
        self._spec, self._tunnel = spec, tunnel
        await refuse_overlap(self._netlink, spec, tunnel)
        plan = make_ruleset(spec, tunnel, uplink=self.uplink)
        rules = Netfilter(
            await choose_backend(plan, self._machine.run_tool, self._machine.find_tool),
            spec.owner,
            self._journal.record,
            self._machine.run_tool,
            self.egress.elements,
        )
        self.egress.attach(rules)
        self.egress.adopt(plan.policy, await look_around(self._netlink, self._spec, self._tunnel))
        known = await rules.facts()
        self.egress.recall(known.own, self._unix_time(), known.pinned)
        self.nat = Nat(rules, self._machine, functools.partial(self._netlink.networks, besides=()), known.own)
        self._before = await look_at_forwarding(self._netlink, spec, self.uplink, known)
        await self.nat.close(self._rules())
        self._require_mark(plan.versions)
        await self._netlink.enable_forwarding(spec.interface.name, self._before)
        await set_up_tunnel(self._netlink, spec, tunnel.mtu)

    def _require_mark(self, versions: tuple[int, ...]) -> None:
        """Make the kernel drop the enclave's packets while the relay's filter rules are missing."""
        self._marked = ()
        for version in versions:
            try:
                self._machine.require_mark(self._spec.interface.name, (version,), self._journal.record)
                self._marked += (version,)
            except WgvsockError as error:
                extra = error_fields(error)
                _log.warning("a flush of the packet filter lets packets out until it is repaired", extra=extra)

    async def adopt(self, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
        """Put a reloaded configuration in force. The uplink stays open or closed as it is.

        Raises:
            WgvsockError: The configuration cannot be applied.
        """
        async with self._turn:
            await refuse_overlap(self._netlink, spec, tunnel)
            self._spec, self._tunnel = spec, tunnel
            needed = await self._needed_switches()
            rules = self._rules()
            await self.nat.keep(rules)
            self._require_mark(rules.versions)
            self.egress.adopt(spec.egress.policy(), await look_around(self._netlink, self._spec, self._tunnel))
            await self._netlink.enable_forwarding(spec.interface.name, needed)
            await set_up_tunnel(self._netlink, spec, tunnel.mtu)

    async def open(self) -> None:
        """Let packets pass.

        Raises:
            NetfilterError: The rules were refused.
        """
        self._conntrack_size = self._machine.conntrack_size()  # the rules of the closed filter have loaded it
        rules = self._rules()
        if rules.max_flows < self._spec.egress.max_flows:
            table = fields(max_flows=rules.max_flows, nf_conntrack_max=self._conntrack_size)
            _log.warning("max_flows is limited to half of the connection tracking table", extra=table)
        await self.nat.open(rules)

    async def close(self) -> None:
        """Let nothing pass, but keep the known flows.

        Raises:
            NetfilterError: The rules were refused.
        """
        await self.nat.close(self._rules())

    async def leave(self) -> None:
        """Close, and leave what the next relay of this name needs in the rules.

        Raises:
            NetfilterError: The rules were refused.
        """
        rules = self._rules()
        await self.nat.close(replace(rules, before=(*rules.before, *self.egress.facts(self._unix_time()))))

    async def part(self) -> None:
        """End the uplink while the tunnel still works. The enclave's connections need no message here."""

    async def forgive_interruption(self) -> None:
        """Make connection tracking accept retransmissions after packets were lost on a broken stream."""
        await self.nat.forgive_interruption(self._rules())

    async def leave_to_others(self) -> None:
        """Before the undo, release the changes that other relays in this namespace need."""
        if not self._before:
            return
        for fact in (await self.nat.netfilter.facts()).others:
            self._journal.forget(fact.kind, fact.target)

    def snapshot(self) -> UplinkSnapshot | None:
        """The uplink's state as of the last check, or None before it is prepared."""
        if not hasattr(self, "nat"):
            return None
        rules = self.nat.rules
        ports = rules.published if rules is not None and rules.is_open else ()
        return UplinkSnapshot(
            is_open=self.nat.is_open,
            owner=self._spec.owner,
            backend=self.nat.netfilter.backend,
            interfaces=self.uplink.name,
            mtu=self._tunnel.mtu,
            unset_sysctls=self.uplink.unset_sysctls,
            published=tuple(
                f"{port.protocol}:{port.port}->{port.destination}:{port.destination_port}" for port in ports
            ),
            repairs=Counter(self.repairs),
            deleted_flows=Counter(self.nat.deleted_flows),
            contested=self.contested,
            problem=self.problem,
            egress=self.egress.snapshot(),
        )

    # Maintenance.

    async def watch(self, changed: Callable[[], None]) -> NoReturn:
        """Keep everything in the wanted state.

        Args:
            changed: Called when the uplink or resolv.conf has changed, so that the enclave's settings may change.
        """
        with self._machine.watch() as kernel:
            while True:
                rules_went = await kernel.wait(SLOW_LOOK if self.problem is None else RETRY)
                if rules_went and not self.contested:
                    await self._put_rules_back()
                await asyncio.sleep(FIGHT_PAUSE if self.contested else SETTLE)
                await self._lookout.look(self.keep, lambda: self.uplink, changed)

    async def _put_rules_back(self) -> None:
        """Repair the rules at once, because packets would leave untranslated. `keep` reports failures."""
        async with self._turn:
            with contextlib.suppress(WgvsockError):
                if await self.nat.keep(self._rules()):
                    self._repaired("rules")

    async def keep(self) -> None:
        """Check once, and repair what differs. A failed repair becomes the `problem` and does not end the service."""
        async with self._turn:
            self._fights &= self._recently().keys()
            try:
                await self._mend()
                await self._prove()
            except WgvsockError as error:
                if self.problem is None or str(self.problem) != str(error):
                    extra = error_fields(error)
                    _log.warning("the uplink has a problem that cannot be repaired", extra=extra)
                self.problem = error
            else:
                self.problem = None
            if (now := self._machine.monotonic()) >= self._look_at_egress:
                self._look_at_egress = now + SLOW_LOOK
                await self.egress.look()

    @property
    def contested(self) -> tuple[str, ...]:
        """The kinds of change that another program repeats after each repair."""
        count, _ = FIGHT
        return tuple(sorted(kind for kind, repairs in self._recently().items() if repairs >= count))

    def _recently(self) -> Counter[str]:
        """Number of recent repairs by kind, within the time span of `FIGHT`."""
        _, span = FIGHT
        return Counter(kind for at, kind in self._recent if self._machine.monotonic() - at <= span)

    async def _mend(self) -> None:
        no_uplink: WgvsockError | None = None
        try:
            uplink = await find_uplink(self._netlink, self._spec.nat.uplink)
        except WgvsockError as error:
            no_uplink = error  # raised at the end, after the other repairs: the rules also protect this machine
        else:
            if uplink != self.uplink:
                warn_of_ipv6(self._spec, uplink, self.uplink)
                self.uplink = uplink
                self._repaired("uplink")
        needed = await self._needed_switches()
        # Rules come before forwarding, as at the start, so that no packet passes before it is filtered.
        if await self.nat.keep(self._rules()):
            self._repaired("rules")
        if self._marked and self._machine.require_mark(self._spec.interface.name, self._marked, self._journal.record):
            self._repaired("routing policy")
        if await self._netlink.enable_forwarding(self._spec.interface.name, needed):
            self._repaired("forwarding")
        if await set_up_tunnel(self._netlink, self._spec, self._tunnel.mtu):
            self._repaired("interface")
        self.egress.site = await look_around(self._netlink, self._spec, self._tunnel)  # addresses come and go
        if no_uplink is not None:
            raise no_uplink

    async def _prove(self) -> None:
        """Test with a packet of each IP version that it passes all rules of this machine, including other programs'.

        Raises:
            ObstacleError: A packet did not pass.
        """
        if self._tun is None or not self.nat.is_open:
            return
        pending, applied = self.uplink.versions, self.nat.applied
        for _ in range(PROBES):
            sent = {
                address.version
                for address in first_addresses(self._spec, pending)
                if self._put_in(make_probe(address.ip, next(self._probe_numbers)))
            }
            before, self._probes_seen = self._probes_seen, await self.nat.netfilter.probes_seen()
            seen = self._probes_seen
            # A count of 0 proves nothing: the counter was reset.
            pending = frozenset(v for v in sent & seen.keys() if seen[v] in {0, before.get(v)})
            if not pending or not self.nat.is_open:  # it may have been closed in the meantime
                return
        name = self._spec.interface.name
        families = " and ".join(f"IPv{version}" for version in sorted(pending))
        chains = ", ".join(await self.nat.netfilter.who_drops())
        if self.nat.applied != applied:  # the rules, which may have dropped the probes: nothing new is known
            if isinstance(self.problem, ObstacleError):
                raise self.problem
            return
        raise ObstacleError(
            f"{families} packets from the enclave do not get through this machine",
            why="another program's rules drop or divert them" + (f" (dropping by default: {chains})" if chains else ""),
            fix=f"make it accept packets from and to {name} (`nft list ruleset`, `iptables -S FORWARD`)",
        )

    def _put_in(self, packet: bytes) -> bool:
        tun = self._tun
        return tun is not None and tun.write(memoryview(bytes(tun.packet_headroom) + packet))

    async def _needed_switches(self) -> tuple[Fact, ...]:
        """The sysctls that the present uplink needs. Their original values are remembered."""
        needed = await look_at_forwarding(self._netlink, self._spec, self.uplink, KnownFacts(own=self._before))
        self._before = tuple(dict.fromkeys((*self._before, *needed)))
        return needed

    def _repaired(self, kind: str) -> None:
        self.repairs[kind] += 1
        self._recent.append((self._machine.monotonic(), kind))
        if kind in self._fights:
            return  # already logged, and logged again only after a quiet time
        _log.warning("repaired a change that another program made", extra=fields(what=kind))
        if kind in self.contested:
            self._fights.add(kind)
            _log.error("another program undoes every repair", extra=fields(what=kind))

    def _rules(self) -> Ruleset:
        confined = confined_versions(self._before, forwards_ipv4_now=self._netlink.forwards_ipv4())
        return make_ruleset(
            self._spec,
            self._tunnel,
            uplink=self.uplink,
            before=self._before,
            confined=confined,
            conntrack_size=self._conntrack_size,
        )

    def _unix_time(self) -> float:
        return self._machine.wall_clock() / 1e9
