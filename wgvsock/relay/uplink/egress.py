"""One enclave's egress on the relay: the names that it may ask for, their addresses, and what was refused.

The packet filter (`wgvsock.system.filter.nft_egress`) or, in user space, a gate applies the rules. The changing state
is kept here, because it outlives the rules: the addresses of names, and what the rules have counted.

A forwarder calls `allows` before it passes on a query, and `pin` before it passes on the answer
(`wgvsock.dns.judge.NameJudge`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Final, Generic, Protocol, TypeVar

from wgvsock.addresses import IpAddress
from wgvsock.egress.names import GRACE, MAX_ANSWER, MAX_TTL, Changes, Pin, Pins
from wgvsock.egress.policy import ECHO_REQUEST, ICMP, Packet, Policy, Site
from wgvsock.egress.trial import Destination, Outcome, outcomes
from wgvsock.egress.verdict import judge
from wgvsock.relay.uplink.base import DeniedDestination, EgressSnapshot, RefusedName, RuleCount
from wgvsock.system.errors import NetfilterError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.egress_listing import Denied, Judged
from wgvsock.system.filter.rules import Element, HeldPin

MAX_REMEMBERED: Final = 1024
"""Entries in each list of refused names, denied destinations, and addresses with their names. The enclave chooses
them, so the lists are bounded and keep the latest."""

PINNED: Final = "pinned"
"""Kind of the fact that an address is pinned to a name. See `wgvsock.system.facts.Fact`."""

_REMEMBERED_NAME: Final = re.compile(r"[a-z0-9._-]{1,60}")
"""Names that fit into an nft comment and contain nothing that nft would interpret."""

_REMEMBERED: Final = re.compile(r"([0-9a-f.:]+)/([0-9]{1,12})")

_log = logging.getLogger(__name__)
_K = TypeVar("_K")
_V = TypeVar("_V")


class Judge(Protocol):
    """Decides about packets: `wgvsock.system.filter.apply.Netfilter`, or a gate in user space."""

    async def pin(self, addresses: Collection[IpAddress], forgotten: Collection[IpAddress] = ()) -> None:
        """Let packets to these addresses pass for as long as the addresses are pinned.

        Args:
            addresses: Addresses that were pinned, or pinned for longer than before.
            forgotten: Addresses that lost a pin.

        Raises:
            NetfilterError: The packet filter refused the addresses.
        """
        ...

    async def judged(self) -> Judged:
        """The counters, and the denied destinations."""
        ...


class _Latest(Generic[_K, _V]):
    """A limited number of values, of which the latest are kept."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._limit = limit

    def put(self, key: _K, value: _V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, key: _K) -> _V | None:
        return self._values.get(key)

    def items(self) -> Iterable[tuple[_K, _V]]:
        return reversed(self._values.items())


@dataclass(frozen=True, slots=True)
class _Refused:
    count: int = 0
    last: float = 0.0
    withheld: tuple[IpAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class _Destination:
    address: IpAddress
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class _Denials:
    count: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class _Reading:
    """The counters of the rules in force at the last check."""

    generation: int = -1
    counts: Counter[str] = field(default_factory=Counter)
    denied: dict[_Destination, int] = field(default_factory=dict)


class Egress:
    """The egress of one enclave.

    Args:
        clock: Returns monotonic seconds.

    Attributes:
        policy: The policy in force.
        site: The addresses that the policy refers to.
        pins: The addresses of names.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.policy = Policy()
        self.site = Site()
        self.pins = Pins()
        self._clock = clock
        self._netfilter: Judge | None = None
        self._pending: set[IpAddress] = set()  # pinned, but maybe not in the rules yet
        self._forgotten: set[IpAddress] = set()  # lost a pin, and maybe still in the rules
        self._turn = asyncio.Lock()
        self._rested = 0.0  # when the tool may run again
        self._counts: Counter[str] = Counter()  # of all rules, present and past
        self._reading = _Reading()
        self._denied: _Latest[_Destination, _Denials] = _Latest()
        self._refused: _Latest[str, _Refused] = _Latest()
        self._told: _Latest[IpAddress, str] = _Latest()
        self._names_refused = 0
        self._addresses_withheld = 0

    def attach(self, netfilter: Judge) -> None:
        """Use this judge from now on."""
        self._netfilter = netfilter

    def adopt(self, policy: Policy, site: Site) -> None:
        """Apply another policy or site. Pins of names that the policy no longer has end with the next rules."""
        if policy != self.policy:
            self.policy = policy
            self.pins.keep(lambda pin: policy.pins(pin.name))
        self.site = site

    def inherit(self, pins: Iterable[Pin]) -> None:
        """Take over the pins of the enclave that this one replaces."""
        self._note_changes(self.pins.adopt(pin for pin in pins if self.policy.pins(pin.name)))

    def facts(self, unix_time: float) -> tuple[Fact, ...]:
        """The pins as facts for the rules that a relay leaves to the next one of its name: see `recall`.

        Args:
            unix_time: The present Unix time in seconds, which both relays share.
        """
        now = self._clock()
        latest = [pin for pin in self.live() if _REMEMBERED_NAME.fullmatch(pin.name)][-MAX_REMEMBERED:]
        return tuple(Fact(PINNED, pin.name, f"{pin.address}/{round(unix_time + pin.until - now)}") for pin in latest)

    def recall(self, facts: Iterable[Fact], unix_time: float, pinned: Iterable[HeldPin] = ()) -> None:
        """Restore the pins of an earlier relay, because the enclave's application still uses those addresses.

        Args:
            facts: The facts that the earlier relay left when it stopped.
            unix_time: The present Unix time in seconds.
            pinned: The pins in its rules, if it was killed.
        """
        now, longest = self._clock(), MAX_TTL + GRACE
        pins = [Pin(one.name, one.address, now + min(one.seconds, longest)) for one in pinned]
        for fact in facts:
            if fact.kind == PINNED and (found := _REMEMBERED.fullmatch(fact.value)):
                left = min(int(found[2]) - unix_time, longest)
                with contextlib.suppress(ValueError):  # not an address
                    pins.append(Pin(fact.target, ip_address(found[1]), now + left))
        self.inherit(pin for pin in pins if pin.until > now and self.policy.may_tell(pin.address, self.site))

    def live(self) -> list[Pin]:
        """The addresses that names have now."""
        return self.pins.live(self._clock())

    def elements(
        self, policy: Policy, addresses: Collection[IpAddress] | None, forgotten: Collection[IpAddress] = ()
    ) -> list[Element]:
        """The elements of the filter's sets for pinned addresses, with the seconds that they have left.

        See `wgvsock.system.filter.apply.Pinned`.

        Args:
            policy: The policy whose rules are considered.
            addresses: Only these addresses; None for all pinned ones.
            forgotten: Addresses that lost a pin. Their elements get 0 s if no pin is left.
        """
        now = self._clock()
        if addresses is None:
            pins = self.pins.live(now)
        else:
            pins = [pin for address in {*addresses, *forgotten} for pin in self.pins.of(address, now)]
        found = {(rule.key, one): Element(rule, one, 0.0) for one in forgotten for rule in policy.name_rules}
        rules = {name: policy.rules_of(name) for name in {pin.name for pin in pins}}
        for pin in pins:
            for rule in rules[pin.name]:
                key = rule.key, pin.address
                if key not in found or found[key].seconds < pin.until - now:
                    name = pin.name if _REMEMBERED_NAME.fullmatch(pin.name) else ""
                    found[key] = Element(rule, pin.address, pin.until - now, name)
        return list(found.values())

    # For the forwarder.

    def allows(self, name: str) -> bool:
        """Whether the enclave may ask for a name, in lower case without the trailing dot. Refusals are counted."""
        if self.policy.allows_name(name):
            return True
        self._refuse(name, ())
        return False

    @property
    def longest(self) -> float:
        """Seconds that a pin lasts, or infinity if the policy has no names."""
        return MAX_TTL if self.policy.has_names else float("inf")

    async def pin(self, name: str, found: Sequence[tuple[IpAddress, float]]) -> frozenset[IpAddress]:
        """Let packets to the addresses of an answer pass. The rules are in force when this returns.

        Args:
            name: The name that was asked for.
            found: Addresses, each with its TTL in seconds.

        Returns:
            The addresses that must be withheld: those in a closed network or a tunnel, or of the relay's own machine,
            those over the limit for one answer, and those that the packet filter refused.
        """
        told: list[tuple[IpAddress, float]] = []
        for address, ttl in found:
            if self.policy.may_tell(address, self.site):
                told.append((address, ttl))
        told = told[:MAX_ANSWER]
        addresses = frozenset(address for address, _ in told)
        for address in addresses:
            self._told.put(address, name)
        withheld = frozenset(address for address, _ in found) - addresses
        if self.policy.pins(name):
            self._note_changes(self.pins.pin(name, told, self._clock()))
            try:
                await self._write(addresses)
            except NetfilterError as error:
                _log.warning("addresses are withheld because the packet filter refused them: %s", error)
                withheld |= addresses
        if withheld:
            self._refuse(name, tuple(sorted(withheld, key=str)))
        return withheld

    async def _write(self, addresses: frozenset[IpAddress]) -> None:
        """Return when these addresses are in the rules. One call of the tool writes all that are pending.

        Raises:
            NetfilterError: The addresses were refused. The next call tries again.
        """
        async with self._turn:  # even if nothing is pending: another task may still be writing them
            if self._netfilter is None or not addresses & self._pending:
                return
            # Each new name costs a process. This pause limits an enclave that invents names to half a processor.
            if (pause := self._rested - self._clock()) > 0:
                await asyncio.sleep(pause)
            begin = self._clock()
            writing, self._pending = self._pending, set()
            forgotten, self._forgotten = self._forgotten, set()
            try:
                await self._netfilter.pin(writing, forgotten)
            except BaseException:
                # Forgotten addresses are not queued again. They expire, and a failing tool must not let them grow.
                now = self._clock()
                self._pending |= {address for address in writing if any(self.pins.names(address, now))}
                raise
            finally:
                self._rested = 2 * self._clock() - begin

    def _note_changes(self, changes: Changes) -> None:
        self._pending |= changes.made
        self._forgotten |= changes.forgotten

    def _refuse(self, name: str, withheld: tuple[IpAddress, ...]) -> None:
        before = self._refused.get(name) or _Refused()
        self._refused.put(name, _Refused(before.count + 1, self._clock(), withheld))
        if withheld:
            self._addresses_withheld += len(withheld)
        else:
            self._names_refused += 1

    def outcomes(self, destination: Destination) -> tuple[Outcome, ...]:
        """Predict the verdict on a flow that begins now."""
        return outcomes(self.policy, self.pins, self.site, destination, self._clock())

    # Counters.

    async def look(self) -> None:
        """Read the counters of the rules."""
        if self._netfilter is not None:
            self._note(await self._netfilter.judged())

    def _note(self, judged: Judged) -> None:
        known = self._reading if judged.generation == self._reading.generation else _Reading(judged.generation)
        self._counts += judged.counts - known.counts  # only increases
        now, seen = self._clock(), {}
        for one in sorted(judged.denied, key=lambda one: one.age, reverse=True):
            destination = _Destination(one.address, one.protocol, one.port)
            seen[destination] = one.count
            before = known.denied.get(destination, 0)
            # The kernel forgets a destination after a while, and its count then starts again.
            new = one.count - before if one.count >= before else one.count
            if new:
                self._note_denied(destination, new, one, now)
        self._reading = _Reading(judged.generation, judged.counts, seen)

    def _note_denied(self, destination: _Destination, new: int, denied: Denied, now: float) -> None:
        before = self._denied.get(destination) or _Denials(first=now - denied.age)
        self._denied.put(destination, replace(before, count=before.count + new, last=now - denied.age))

    def snapshot(self) -> EgressSnapshot:
        """The state as of the last check."""
        now = self._clock()
        rules = (*self.policy.deny, *self.policy.allow)
        keys = {rule.key for rule in rules}
        return EgressSnapshot(
            default="allow" if self.policy.allows_by_default else "deny",
            rules=tuple(RuleCount(rule.key, str(rule), self._counts[rule.key]) for rule in rules),
            others={key: count for key, count in sorted(self._counts.items()) if key not in keys},
            pins=tuple((pin.name, str(pin.address), pin.until - now) for pin in self.pins.live(now)),
            denied=tuple(self._described(destination, denials, now) for destination, denials in self._denied.items()),
            refused=tuple(
                RefusedName(name, refused.count, now - refused.last, tuple(map(str, refused.withheld)))
                for name, refused in self._refused.items()
            ),
            names_refused=self._names_refused,
            addresses_withheld=self._addresses_withheld,
        )

    def _described(self, destination: _Destination, denials: _Denials, now: float) -> DeniedDestination:
        version = destination.address.version
        is_ping = destination.protocol == ICMP[version]
        packet = Packet(
            destination.address, destination.protocol, ECHO_REQUEST[version] if is_ping else destination.port
        )
        verdict = judge(self.policy, self.pins, packet, self.site, now)
        return DeniedDestination(
            address=str(destination.address),
            protocol=packet.kind or str(destination.protocol),
            port=destination.port or None,
            count=denials.count,
            first=now - denials.first,
            last=now - denials.last,
            name=self._told.get(destination.address),
            by=str(verdict),
        )
