"""Applies, checks and removes rulesets, with nft or iptables, whichever works on this machine."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from wgvsock.addresses import IpAddress
from wgvsock.egress.policy import Policy
from wgvsock.runtime.journal import Performer, Record, Undo
from wgvsock.system.conntrack import FLOWS
from wgvsock.system.errors import NetfilterError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.egress_listing import Judged, iptables_counts, nft_counts, nft_denied, nft_pins, rules_in
from wgvsock.system.filter.iptables import CHAIN_PREFIX, JUMPS, chain_name, own_chains, render_iptables
from wgvsock.system.filter.iptables_egress import HELPERS
from wgvsock.system.filter.nft import TABLE_PREFIX, render_nft, render_removal, table_name
from wgvsock.system.filter.nft_egress import MAX_DENIED, render_pins
from wgvsock.system.filter.rules import Element, HeldPin, Ruleset, facts_in

_log = logging.getLogger(__name__)

_RULES_TIMEOUT: Final = 10.0
"""Seconds for one call of nft or iptables. It takes milliseconds, and may wait for another program's lock."""

_FAMILIES: Final = (4, 6)

_NFT_COUNT: Final = re.compile(r"(ip6?) daddr .* counter packets (\d+) ")


class Ran(NamedTuple):
    """The outcome of a tool: exit status, standard error, standard output."""

    status: int
    complaint: str = ""
    output: str = ""


RunTool = Callable[[Sequence[str], str], Awaitable[Ran]]
"""Runs a command with the given text on its standard input."""


class Pinned(Protocol):
    """Returns the pinned addresses, and how long each stays pinned."""

    def __call__(
        self, policy: Policy, addresses: Collection[IpAddress] | None, forgotten: Collection[IpAddress] = ()
    ) -> Collection[Element]:
        """List an element for each rule of a policy that allows a name with one of the addresses.

        Args:
            policy: The policy of the rules in force.
            addresses: The addresses in question, or None for all that are pinned.
            forgotten: Addresses that have lost a pin. They get an element for every rule that allows names.
        """
        ...


def _nothing_pinned(
    policy: Policy, addresses: Collection[IpAddress] | None, forgotten: Collection[IpAddress] = ()
) -> Collection[Element]:
    del policy, addresses, forgotten
    return ()


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """Facts stored in wgvsock's rules in this network namespace.

    Attributes:
        own: Facts in this relay's own rules.
        others: Facts in other relays' rules.
        pinned: Pinned addresses in this relay's own rules, if a killed relay left them open.
    """

    own: tuple[Fact, ...] = ()
    others: tuple[Fact, ...] = ()
    pinned: tuple[HeldPin, ...] = ()


class Netfilter:
    """The rules of one enclave.

    Args:
        backend: ``nft`` or ``iptables``, from `choose_backend`.
        owner: Owner of the rules: see `Ruleset.owner`.
        record: Takes each undo before the change.
        run: Runs the tools.
        pinned: Called whenever rules are applied: the addresses of names outlive the rules.
    """

    def __init__(
        self, backend: str, owner: str, record: Record, run: RunTool, pinned: Pinned = _nothing_pinned
    ) -> None:
        self.backend = backend
        self._owner = owner
        self._record = record
        self._run = run
        self._pinned = pinned
        self._applied: Ruleset | None = None  # None: unknown
        self._generation = 0
        self._turn = asyncio.Lock()  # pins must go into the rules in force, not into replaced ones
        self._versions: tuple[int, ...] = _FAMILIES
        self._listing: str | None = None  # how our rules were listed right after they were applied

    async def apply(self, rules: Ruleset) -> None:
        """Replace our rules with these in one step.

        Raises:
            NetfilterError: The tool is missing or refused them. The earlier rules stay in force.
        """
        self._refuse_names(rules)
        self._record(Undo("netfilter", f"{self.backend} {self._owner}"))
        for address in rules.enclave:  # undone before the rules, which hold back the packets until then
            self._record(Undo(FLOWS, str(address)))
        self._listing = None
        self._versions = rules.versions
        async with self._turn:
            before, self._applied = self._applied, None
            try:
                expected = await self._replace(rules)
            except NetfilterError:
                self._applied = before
                raise
            self._applied = rules
            self._generation += 1
        listing = await self._list()
        # If another program has changed them in between, the listing does not show what was wanted.
        self._listing = listing if rules_in(self.backend, listing) == expected else None

    async def pin(self, addresses: Collection[IpAddress], forgotten: Collection[IpAddress] = ()) -> None:
        """Apply the current pins of these addresses. Does nothing while the rules are closed.

        Args:
            addresses: Addresses that were pinned.
            forgotten: Addresses that have lost a pin.

        Raises:
            NetfilterError: The tool is missing or refused the change.
        """
        async with self._turn:
            if self._applied is None or not self._applied.is_open:
                return  # the next rules to be applied will include them
            if elements := self._pinned(self._applied.policy, addresses, forgotten):
                await self._call(["nft", "-f", "-"], render_pins(table_name(self._owner), elements))

    async def judged(self) -> Judged:
        """What the rules in force have allowed and denied so far."""
        async with self._turn:
            if self.backend == "nft":
                table = table_name(self._owner)
                listing = (await self._run(["nft", "-n", "list", "table", "inet", table], "")).output
                denied = nft_denied(listing)
                for name, found in denied.items():
                    # A full set accepts nothing new. New entries are worth more than those read just now.
                    if len(found) > MAX_DENIED // 2:
                        await self._run(["nft", "flush", "set", "inet", table, name], "")
                return Judged(
                    self._generation, nft_counts(listing), tuple(one for found in denied.values() for one in found)
                )
            chains = own_chains(self._owner)
            saved = [
                (await self._run([_iptables(version, "-save"), "-c", "-t", "filter"], "")).output
                for version in self._versions
            ]
            return Judged(self._generation, iptables_counts("".join(saved), chains))

    async def is_intact(self) -> bool:
        """Whether the kernel's rules are still as `apply` left them: other programs flush and rewrite rules."""
        return self._listing is not None and await self._list() == self._listing

    async def check(self, rules: Ruleset) -> None:
        """Check the rules without applying them.

        Raises:
            NetfilterError: They would be refused.
        """
        self._refuse_names(rules)
        if self.backend == "nft":
            # With -c the kernel checks every rule, and discards them instead of committing.
            await self._call(["nft", "-c", "-f", "-"], render_nft(rules))
            return
        for version in rules.versions:
            command = [_iptables(version, "-restore"), "-w", "--noflush", "--test"]
            await self._call(command, render_iptables(rules, version))

    async def remove(self) -> None:
        """Remove our rules, if there are any.

        Raises:
            NetfilterError: The tool is missing or failed.
        """
        self._listing = self._applied = None
        if self.backend == "nft":
            await self._call(["nft", "-f", "-"], render_removal(self._owner))
            return
        for version in _FAMILIES:
            for jump in reversed(JUMPS):  # remove DNAT before the rules that keep its packets on the tunnel
                chain = chain_name(self._owner, jump.suffix)
                for command in (["-D", jump.hook, "-j", chain], ["-F", chain], ["-X", chain]):
                    await self._run([_iptables(version), "-w", "-t", jump.table, *command], "")
            for verb in ("-F", "-X"):  # flush all first: they refer to one another
                for suffix in HELPERS:
                    await self._run([_iptables(version), "-w", verb, chain_name(self._owner, suffix)], "")

    async def facts(self) -> KnownFacts:
        """The facts about the machine's switches that the rules of this namespace store. See `Fact`."""
        pinned: tuple[HeldPin, ...] = ()
        if self.backend == "nft":
            listings = [(table, await self._list_nft(table)) for table in await self._tables()]
            own = table_name(self._owner)
            pinned = tuple(nft_pins((await self._run(["nft", "-n", "list", "table", "inet", own], "")).output))
        else:
            lines = [line for version in _FAMILIES for line in (await self._save(version)).splitlines()]
            listings = [(words[1], line) for line in lines if (words := line.split())[:1] == ["-A"]]
            listings = [(chain, line) for chain, line in listings if chain.startswith(CHAIN_PREFIX)]
            own = chain_name(self._owner, "LAST")
        facts = [(place == own, fact) for place, listing in listings for fact in facts_in(listing)]
        return KnownFacts(
            own=tuple(dict.fromkeys(fact for is_own, fact in facts if is_own)),
            others=tuple(dict.fromkeys(fact for is_own, fact in facts if not is_own)),
            pinned=pinned,
        )

    async def probes_seen(self) -> dict[int, int]:
        """How many of our probes (`wgvsock.system.filter.probe`) have come through, by IP version, if known.

        The count restarts whenever rules are applied.
        """
        if self.backend == "nft":
            listing = (await self._run(["nft", "list", "chain", "inet", table_name(self._owner), "probe"], "")).output
            return {6 if found[1] == "ip6" else 4: int(found[2]) for found in _NFT_COUNT.finditer(listing)}
        counted = rf"^\[(\d+):\d+\] -A {re.escape(chain_name(self._owner, 'TEST'))} "
        seen = {}
        for version in self._versions:
            saved = (await self._run([_iptables(version, "-save"), "-c", "-t", "mangle"], "")).output
            if found := re.search(counted, saved, re.MULTILINE):
                seen[version] = int(found[1])
        return seen

    async def who_drops(self) -> tuple[str, ...]:
        """Other programs' chains, as nft lists them, that forwarded packets must pass and that drop by default."""
        listing = (await self._run(["nft", "list", "chains"], "")).output
        found: list[str] = []
        table = chain = ""
        for line in listing.splitlines():
            match line.split():
                case ["table", family, name, "{"]:
                    table = "" if name.startswith(TABLE_PREFIX) else f"{family} {name}"
                case ["chain", name, "{"]:
                    chain = name
                case ["type", _, "hook", "forward", *_] if table and "policy drop" in line:
                    found.append(f"{table} {chain}")
        return tuple(found)

    async def _replace(self, rules: Ruleset) -> int:
        """Apply the rules, and return how many they are."""
        if self.backend == "nft":
            text = render_nft(rules, self._pinned(rules.policy, None))
            await self._call(["nft", "-f", "-"], text)
            return rules_in("nft", text)
        rendered = {version: render_iptables(rules, version) for version in rules.versions}
        for version, text in rendered.items():
            await self._call([_iptables(version, "-restore"), "-w", "--noflush"], text)
            await self._place_jumps(version)
        return sum(len(JUMPS) + rules_in("iptables", text) for text in rendered.values())

    def _refuse_names(self, rules: Ruleset) -> None:
        if self.backend == "iptables" and rules.policy.has_names:
            raise NetfilterError(
                "cannot enforce the policy's names in the packet filter",
                why="iptables has no sets whose elements expire",
                fix="install nftables, or write networks instead of names in [egress]",
            )

    async def _place_jumps(self, version: int) -> None:
        """Make the built-in chains jump to ours."""
        present = (await self._save(version)).splitlines()
        for jump in JUMPS:
            rule = [jump.hook, "-j", chain_name(self._owner, jump.suffix)]
            if " ".join(["-A", *rule]) not in present:
                await self._call([_iptables(version), "-w", "-t", jump.table, jump.verb, *rule], "")

    async def _list(self) -> str:
        """Our rules as the kernel has them, without counters."""
        if self.backend == "nft":
            return await self._list_nft(table_name(self._owner))
        chains = set(own_chains(self._owner))
        saved = [await self._save(version) for version in self._versions]
        lines = [line for text in saved for line in text.splitlines()]
        return "\n".join(line for line in lines if line.startswith("-A") and chains & set(line.split()))

    async def _list_nft(self, table: str) -> str:
        # Terse: the elements of sets come and go by themselves.
        return (await self._run(["nft", "-s", "-t", "list", "table", "inet", table], "")).output

    async def _tables(self) -> list[str]:
        listing = (await self._run(["nft", "list", "tables", "inet"], "")).output
        names = [line.rpartition(" ")[2] for line in listing.splitlines()]
        return [name for name in names if name.startswith(TABLE_PREFIX)]

    async def _save(self, version: int) -> str:
        """Every table in one call: a call takes milliseconds, and forwarding is closed only after the last one."""
        return (await self._run([_iptables(version, "-save")], "")).output

    async def _call(self, command: Sequence[str], text: str) -> None:
        ran = await self._run(command, text)
        if ran.status:
            raise NetfilterError(
                f"cannot change the packet filter with {command[0]}",
                why=_first_line(ran),
                fix="run with the capability NET_ADMIN on a kernel with nf_tables and NAT (`wgvsock doctor` checks)",
            )


def _first_line(ran: Ran) -> str:
    complaint = ran.complaint.strip()
    return complaint.splitlines()[0] if complaint else f"exit status {ran.status}"


def _iptables(version: int, suffix: str = "") -> str:
    return f"ip{'6' if version == 6 else ''}tables{suffix}"


async def choose_backend(rules: Ruleset, run: RunTool, find: Callable[[str], str | None]) -> str:
    """``nft`` if the kernel accepts these very rules from it, otherwise ``iptables``.

    Listing tables would prove little: some kernels have nf_tables but lack what a rule needs, such as ``fib`` or NAT.

    Args:
        rules: The rules to try.
        run: Runs the tools.
        find: Returns the path of a tool, or None if it is not installed.

    Raises:
        NetfilterError: Neither is installed, or neither accepts the rules.
    """
    tried: list[str] = []
    for backend, tools in (("nft", ("nft",)), ("iptables", tuple(_tools(rules.versions)))):
        missing = [tool for tool in tools if not find(tool)]
        if missing:
            tried.append(f"{missing[0]} is not installed")
            continue
        try:
            await Netfilter(backend, rules.owner, lambda undo: undo, run).check(replace(rules, is_open=True))
        except NetfilterError as error:
            tried.append(f"{backend}: {error.why}")
        else:
            if backend != "nft" and find("nft"):
                _log.warning("falling back to iptables, because the kernel refuses the rules from nft: %s", tried[0])
            return backend
    raise NetfilterError(
        "cannot translate addresses",
        why="; ".join(tried),
        fix="install nftables, and run with the capability NET_ADMIN on a kernel with nf_tables and NAT",
    )


def _tools(versions: Iterable[int]) -> Iterable[str]:
    return (_iptables(version, "-restore") for version in versions)


def performers(run: RunTool) -> dict[str, Performer]:
    """The function that undoes this module's changes, for a `Journal`."""

    async def remove(target: str, _: object) -> None:
        backend, _, owner = target.partition(" ")
        await Netfilter(backend, owner, lambda undo: undo, run).remove()

    return {"netfilter": remove}


async def run_tool(command: Sequence[str], text: str) -> Ran:
    """Run nft or iptables with a deadline. Exit status 127: it cannot be run. 124: it took too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        return Ran(127, f"{command[0]} is not installed")
    except OSError as error:  # not a program for this machine, or in a directory of PATH that we may not enter
        return Ran(127, f"cannot run {command[0]}: {error.strerror}")
    try:
        async with asyncio.timeout(_RULES_TIMEOUT):
            output, complaint = await process.communicate(text.encode())
    except TimeoutError:
        return Ran(124, f"{command[0]} did not finish within {_RULES_TIMEOUT:g} s")
    finally:
        # Also when we are cancelled: rules must not be applied after they were removed.
        if process.returncode is None:
            process.kill()
            await process.communicate()  # to the end of its pipes: the event loop may end right after this
    return Ran(process.returncode or 0, complaint.decode(errors="replace"), output.decode(errors="replace"))
