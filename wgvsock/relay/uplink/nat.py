"""The rules between the tunnel and the uplink: forwarding, masquerading, published ports (paper, section 3)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import Final, TypeVar

from wgvsock.addresses import IpAddress, IpInterface
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.interface import Uplink, tunnel_prefixes
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.errors import NetfilterError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import Netfilter
from wgvsock.system.filter.rules import PUBLISHED, PublishedPort, Ruleset, published_in
from wgvsock.system.flows import WantedFlows
from wgvsock.telemetry.logs import fields

MAX_REMEMBERED: Final = 1024
"""Withdrawn ports and former enclave addresses to remember. Each reload may add some, and each costs a rule or a search
in the flows. The latest are kept, because clients of older ones gave up long ago."""

AddressBook = Callable[[], Awaitable[Iterable[tuple[str, IpInterface]]]]
"""Returns the addresses of this machine, each with the name of its interface."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def make_ruleset(
    spec: EnclaveSpec,
    tunnel: TunnelConfig,
    *,
    uplink: Uplink,
    before: tuple[Fact, ...] = (),
    confined: frozenset[int] = frozenset(),
    conntrack_size: int | None = None,
) -> Ruleset:
    """Make the packet filter rules for an enclave's configuration on this machine.

    Args:
        spec: The enclave's specification.
        tunnel: The settings that the enclave gets.
        uplink: Where its packets leave the machine.
        before: Facts about the machine that the rules remember.
        confined: IP versions that this machine forwards only for tunnels.
        conntrack_size: See `wgvsock.system.conntrack.table_size`. An enclave gets at most half of the table, because
            other pods share it.
    """
    max_flows = spec.egress.max_flows
    if conntrack_size is not None:
        max_flows = max(1, min(max_flows, conntrack_size // 2))
    return Ruleset(
        owner=spec.owner,
        tunnel=spec.interface.name,
        uplinks=uplink.interfaces,
        sources=tunnel_prefixes(tunnel),
        masquerade=spec.nat.masquerade,
        published=tuple(published_ports(spec)),
        policy=spec.egress.policy(),
        resolvers=tunnel.nameservers,
        relay=tuple(address.ip for address in spec.interface.addresses),
        max_new_flows=spec.egress.max_new_flows,
        max_flows=max_flows,
        confined=confined,
        before=before,
        enclave=tuple(address.ip for address in spec.enclave.addresses),
        draining=spec.draining,
    )


def published_ports(spec: EnclaveSpec) -> list[PublishedPort]:
    """Each published port, for the enclave's first address of each IP version."""
    destinations: dict[int, IpAddress] = {}
    for address in spec.enclave.addresses:
        destinations.setdefault(address.version, address.ip)
    return [
        PublishedPort(entry.protocol, entry.port, destination, entry.enclave_port or entry.port)
        for entry in spec.nat.publish
        for destination in destinations.values()
    ]


class Nat:
    """Opens and closes the packet filter. The journal reverts its rules.

    Connection tracking is made to follow the rules (see `wgvsock.system.flows`). The wanted flows are compared with
    those of the last successful pass, so the next check makes up for a failed pass.

    Args:
        netfilter: Puts rules in force.
        machine: Provides connection tracking.
        addresses: Returns this machine's addresses.
        known: Facts in the rules of an earlier relay of this name, such as the ports that it published.

    Attributes:
        deleted_flows: Number of deleted flows by kind, see `wgvsock.system.flows`.
        applied: Number of times that rules were put in force, counted from the beginning of each.
    """

    def __init__(
        self, netfilter: Netfilter, machine: RelayMachine, addresses: AddressBook, known: Collection[Fact] = ()
    ) -> None:
        self.netfilter = netfilter
        self.deleted_flows: Counter[str] = Counter()
        self._machine = machine
        self._addresses = addresses
        self._led = dict.fromkeys(published_in(known))  # every present or former published port, the latest last
        self._served: dict[IpAddress, None] = {}  # every present or former address of the enclave
        self._local: frozenset[IpAddress] = frozenset()  # this machine's addresses at the last successful pass
        self.applied = 0
        self._followed: tuple[int, WantedFlows] | None = None
        self._following = asyncio.Lock()
        self._complaint = ""
        self._rules: Ruleset | None = None
        self._turn = asyncio.Lock()  # one tool at a time, so that the last request takes effect last

    @property
    def rules(self) -> Ruleset | None:
        """The rules in force, or None if there are none yet, or if they are unknown after an interrupted change."""
        return self._rules

    @property
    def is_open(self) -> bool:
        """Whether packets may pass."""
        return self._rules is not None and self._rules.is_open

    async def open(self, rules: Ruleset) -> None:
        """Let packets pass.

        Raises:
            NetfilterError: The rules were refused.
        """
        async with self._turn:
            rules = self._complete(rules)
            if rules == self._rules:
                return
            if not self.is_open:
                await self.forgive_interruption(rules)
            await self._apply(rules)
        await self._follow()
        _log.info("forwarding enabled", extra=fields(uplink=dict(rules.uplinks), published=len(rules.published)))

    async def forgive_interruption(self, rules: Ruleset) -> None:
        """Make connection tracking accept retransmissions after packets were lost on a broken stream."""
        try:
            flows = await self._machine.in_thread(lambda: self._machine.forgive_interruption(rules.sources))
        except NetfilterError as error:
            _log.warning("%s", error)
        else:
            if flows:
                _log.info("connections survive the interruption", extra=fields(flows=flows))

    async def close(self, rules: Ruleset) -> None:
        """Let nothing pass, but keep the known flows (see `Ruleset.is_open`).

        Raises:
            NetfilterError: The rules were refused.
        """
        async with self._turn:
            closed = replace(self._complete(rules), is_open=False)
            if closed == self._rules:
                return
            await self._apply(closed)
        await self._follow()
        _log.info("forwarding disabled")

    async def keep(self, rules: Ruleset) -> bool:
        """Put the wanted rules in force if they are not, without opening or closing.

        Returns:
            Whether another program had changed the rules.

        Raises:
            NetfilterError: The rules were refused.
        """
        async with self._turn:
            if self._rules is None:
                return False  # the interrupted task puts them in force, or closes
            wanted = replace(self._complete(rules), is_open=self._rules.is_open)
            intact = await self.netfilter.is_intact()
            if not intact or wanted != self._rules:
                await self._apply(wanted)
        await self._follow()  # addresses may change while the rules do not
        return not intact

    def _complete(self, rules: Ruleset) -> Ruleset:
        """The rules, completed with withdrawn ports and with the facts that they have to remember."""
        self._led = _latest(self._led, rules.published)
        self._served = _latest(self._served, rules.enclave)
        # An enclave that is being replaced keeps its clients until its address is gone.
        withdrawn = () if rules.draining else tuple(port for port in self._led if port not in rules.published)
        remembered = (port.fact() for port in self._led)
        before = tuple(fact for fact in rules.before if fact.kind != PUBLISHED)
        return replace(rules, withdrawn=withdrawn, before=(*before, *remembered))

    async def _apply(self, rules: Ruleset) -> None:
        self.applied += 1  # flows that began while our rules were not in force met other rules
        # The tool replaces the rules atomically. Until then, the previous ones are in force.
        try:
            await self.netfilter.apply(rules)
        except NetfilterError:
            raise  # a refusal changes nothing
        except BaseException:
            self._rules = None  # a cancelled tool may have changed everything
            raise
        self._rules = rules

    async def _follow(self) -> None:
        """Make connection tracking agree with the rules in force, unless that was already done.

        This may take seconds, during which the rules can still change: closing never waits for it. A failed pass does
        not close the filter. Packets are filtered in any case, and only old flows keep their translation.
        """
        async with self._following:
            if self._rules is not None:
                await self._delete_stale(self._rules, self.applied)

    async def _delete_stale(self, rules: Ruleset, applied: int) -> None:
        try:
            wanted = self._wanted_flows(rules, await self._addresses())
            if (applied, wanted) == self._followed:
                return
            deleted = await self._machine.delete_stale(wanted)
        except WgvsockError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("%s", error)
            return
        self._followed, self._local, self._complaint = (applied, wanted), wanted.local, ""
        self.deleted_flows += deleted
        if deleted:
            _log.info("deleted flows that contradict the rules", extra=fields(**deleted))

    def _wanted_flows(self, rules: Ruleset, here: Iterable[tuple[str, IpInterface]]) -> WantedFlows:
        addresses = [(name, address.ip) for name, address in here]
        local = frozenset(address for _, address in addresses)
        # Additional addresses on lo are reachable through the uplinks, too.
        doors = (*rules.uplinks, (4, "lo"), (6, "lo"))
        return WantedFlows(
            published=frozenset(rules.published if rules.is_open else ()),
            withdrawn=frozenset(rules.withdrawn),
            arrivals=frozenset(address for name, address in addresses if (address.version, name) in doors),
            local=local,
            gone=self._local - local,
            enclave=frozenset(rules.enclave),
            ended=frozenset(self._served) - frozenset(rules.enclave),
        )


def _latest(known: dict[_T, None], new: Iterable[_T]) -> dict[_T, None]:
    """The known values with the new ones at the end, and at most `MAX_REMEMBERED` of the others."""
    latest = dict.fromkeys(new)
    others = [value for value in known if value not in latest]
    return dict.fromkeys((*others[-MAX_REMEMBERED:], *latest))
