"""Our packet filter rules: one nftables table of our own, or chains of our own where only iptables is there.

`Ruleset` says what is wanted, `render_nft` and `render_iptables` write it down, `Netfilter` puts it in force in one
atomic step and takes it back. A packet of the enclave meets the chains in the order they are written: forward
(allowed at all?, MSS), postrouting (MASQUERADE); one for the enclave: prerouting (DNAT), forward.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, Literal

from wgvsock.settings import IpAddress, IpNetwork
from wgvsock.system.errors import NetfilterError
from wgvsock.system.journal import Performer, Record, Undo

TABLE: Final = "wgvsock"

CLOSED_DESTINATIONS: Final[tuple[IpNetwork, ...]] = (
    ip_network("169.254.0.0/16"),
    ip_network("fe80::/10"),
    ip_network("fd00:ec2::/32"),
)
"""Link-local addresses, and what EC2 uses in their place for IPv6: the instance metadata service at fd00:ec2::254 (EC2
user guide, "Instance metadata") and the EKS Pod Identity Agent at fd00:ec2::23 (EKS user guide) hand out credentials
that are the node's or the pod's, not the enclave's."""

_RULES_TIMEOUT: Final = 10.0
"""Seconds for one nft or iptables call: they take milliseconds, and may wait for another program's lock."""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the uplink whose packets go to the enclave (paper, listing 2); the client's address is kept."""

    protocol: Literal["tcp", "udp"]
    port: int
    destination: IpAddress
    destination_port: int


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the relay's packet filter has to do.

    Attributes:
        tunnel: The relay's WireGuard interface.
        uplink: The interface that leads to the world.
        sources: The enclave's prefixes.
        is_open: False: nothing is translated anew and nothing is forwarded, but the flows that are known keep their
            translation. Without the table the kernel would take their packets for its own and reset them.
        masquerade: Hide the enclave's prefixes behind the uplink's address (paper, listing 1).
        published: Ports of the uplink that lead to the enclave.
        open_destinations: Exceptions from `CLOSED_DESTINATIONS`.
        resolvers: DNS servers; their port 53 is reachable even where the address is closed, or is the relay's own.
        open_relay: The enclave may open connections to the relay's own machine. Otherwise it reaches resolvers there,
            and ping answers: health checks and whatever else listens in the pod are none of its business.
        forwards_others: The machine forwarded packets before we came: leave what is not ours alone. Otherwise only what
            belongs to the tunnel is forwarded.
    """

    tunnel: str
    uplink: str
    sources: tuple[IpNetwork, ...]
    is_open: bool = True
    masquerade: bool = True
    published: tuple[PublishedPort, ...] = ()
    open_destinations: tuple[IpNetwork, ...] = ()
    resolvers: tuple[IpAddress, ...] = ()
    open_relay: bool = False
    forwards_others: bool = False


def render_nft(rules: Ruleset) -> str:
    """The whole table for ``nft -f -``: it replaces any earlier one in a single transaction."""
    return "\n".join(_nft_lines(rules)) + "\n"


def _nft_lines(rules: Ruleset) -> Iterator[str]:
    yield f"table inet {TABLE}"  # so that the next line has something to delete
    yield f"delete table inet {TABLE}"
    yield f"table inet {TABLE} {{"
    yield from _nft_chain("input", "filter", "filter", _nft_input(rules))
    yield from _nft_chain("forward", "filter", "filter", _nft_forward(rules))
    yield from _nft_chain("mss", "filter", "mangle", _nft_mss(rules), hook="forward")
    yield from _nft_chain("prerouting", "nat", "dstnat", _nft_prerouting(rules))
    yield from _nft_chain("postrouting", "nat", "srcnat", _nft_postrouting(rules))
    yield "}"


def _nft_chain(name: str, kind: str, priority: str, lines: Iterable[str], *, hook: str = "") -> Iterator[str]:
    yield f"\tchain {name} {{"
    yield f"\t\ttype {kind} hook {hook or name} priority {priority}; policy accept;"
    yield from (f"\t\t{line}" for line in lines)
    yield "\t}"


def _nft_input(rules: Ruleset) -> Iterator[str]:
    # What connection tracking cannot place is not translated: a packet for the enclave would end here, and the kernel
    # would reset the enclave's connection. Protocols by number: their names are in /etc/protocols, which slim images
    # and enclaves lack.
    yield f'iifname "{rules.uplink}" meta l4proto 6 ct state invalid counter drop'
    if not rules.open_relay:
        tunnel = f'"{rules.tunnel}"'
        if rules.is_open:
            yield f"iifname {tunnel} ct state established,related accept"
            yield f"iifname {tunnel} meta l4proto {{ 1, 58 }} accept"
            yield from _nft_resolvers(rules)
        yield f"iifname {tunnel} counter reject with icmpx type admin-prohibited"


def _nft_resolvers(rules: Ruleset) -> Iterator[str]:
    for resolver in rules.resolvers:
        for protocol in ("tcp", "udp"):
            yield f'iifname "{rules.tunnel}" {_nft_ip(resolver)} daddr {resolver} {protocol} dport 53 accept'


def _nft_forward(rules: Ruleset) -> Iterator[str]:
    tunnel, uplink = f'"{rules.tunnel}"', f'"{rules.uplink}"'
    # Likewise it would leave with the enclave's own address.
    yield f"iifname {tunnel} ct state invalid counter drop"
    if rules.is_open:
        yield from _nft_resolvers(rules)
        for network in rules.open_destinations:
            yield f"iifname {tunnel} oifname {uplink} {_nft_ip(network)} daddr {network} accept"
        for network in CLOSED_DESTINATIONS:
            yield f"iifname {tunnel} {_nft_ip(network)} daddr {network} counter reject with icmpx type admin-prohibited"
        yield f"iifname {tunnel} oifname {uplink} accept"
        yield f"iifname {uplink} oifname {tunnel} ct state established,related accept"
        yield f"iifname {uplink} oifname {tunnel} ct status dnat accept"
    yield f"iifname {tunnel} counter drop"
    yield f"oifname {tunnel} counter drop"
    if not rules.forwards_others:
        yield "counter drop"


def _nft_mss(rules: Ruleset) -> Iterator[str]:
    for direction in ("iifname", "oifname"):
        yield f'{direction} "{rules.tunnel}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu'


def _nft_prerouting(rules: Ruleset) -> Iterator[str]:
    for port in rules.published if rules.is_open else ():
        family = _nft_ip(port.destination)
        yield (
            f'iifname "{rules.uplink}" fib daddr type local meta nfproto ipv{port.destination.version} '
            f"{port.protocol} dport {port.port} dnat {family} to {_with_port(port)}"
        )


def _nft_postrouting(rules: Ruleset) -> Iterator[str]:
    for network in rules.sources if rules.is_open and rules.masquerade else ():
        yield f'oifname "{rules.uplink}" {_nft_ip(network)} saddr {network} masquerade'


def _nft_ip(value: IpAddress | IpNetwork) -> str:
    return "ip" if value.version == 4 else "ip6"


def _with_port(port: PublishedPort) -> str:
    host = f"[{port.destination}]" if port.destination.version == 6 else str(port.destination)
    return f"{host}:{port.destination_port}"


_JUMPS: Final = (
    ("filter", "INPUT"),
    ("filter", "FORWARD"),
    ("mangle", "FORWARD"),
    ("nat", "PREROUTING"),
    ("nat", "POSTROUTING"),
)
"""Built-in chains that jump to ours, which bear the name ``WGVSOCK-<built-in chain>``."""


def render_iptables(rules: Ruleset, version: int) -> str:
    """Our chains, emptied and filled, for ``iptables-restore --noflush`` (`version` 6: ``ip6tables-restore``)."""
    lines: dict[tuple[str, str], list[str]] = {
        ("filter", "INPUT"): list(_iptables_input(rules, version)),
        ("filter", "FORWARD"): list(_iptables_forward(rules, version)),
        ("mangle", "FORWARD"): [
            f"{direction} {rules.tunnel} -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
            for direction in ("-i", "-o")
        ],
        ("nat", "PREROUTING"): [
            f"-i {rules.uplink} -p {port.protocol} -m addrtype --dst-type LOCAL --dport {port.port} "
            f"-j DNAT --to-destination {_with_port(port)}"
            for port in rules.published
            if rules.is_open and port.destination.version == version
        ],
        ("nat", "POSTROUTING"): [
            f"-s {network} -o {rules.uplink} -j MASQUERADE"
            for network in rules.sources
            if rules.is_open and rules.masquerade and network.version == version
        ],
    }
    text: list[str] = []
    for table in ("filter", "mangle", "nat"):
        chains = [chain for name, chain in _JUMPS if name == table]
        text.append(f"*{table}")
        text += [f":{_own(chain)} - [0:0]" for chain in chains]
        text += [f"-A {_own(chain)} {line}" for chain in chains for line in lines[table, chain]]
        text.append("COMMIT")
    return "\n".join(text) + "\n"


_PROHIBITED: Final = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


def _iptables_input(rules: Ruleset, version: int) -> Iterator[str]:
    yield f"-i {rules.uplink} -p tcp -m conntrack --ctstate INVALID -j DROP"
    if not rules.open_relay:
        if rules.is_open:
            yield f"-i {rules.tunnel} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
            yield f"-i {rules.tunnel} -p {'icmp' if version == 4 else 'ipv6-icmp'} -j ACCEPT"
            yield from _iptables_resolvers(rules, version)
        yield f"-i {rules.tunnel} -j REJECT --reject-with {_PROHIBITED[version]}"


def _iptables_resolvers(rules: Ruleset, version: int) -> Iterator[str]:
    for resolver in _of_version(rules.resolvers, version):
        for protocol in ("tcp", "udp"):
            yield f"-i {rules.tunnel} -d {resolver} -p {protocol} --dport 53 -j ACCEPT"


def _iptables_forward(rules: Ruleset, version: int) -> Iterator[str]:
    inwards = f"-i {rules.uplink} -o {rules.tunnel}"
    yield f"-i {rules.tunnel} -m conntrack --ctstate INVALID -j DROP"
    if rules.is_open:
        yield from _iptables_resolvers(rules, version)
        for network in _of_version(rules.open_destinations, version):
            yield f"-i {rules.tunnel} -o {rules.uplink} -d {network} -j ACCEPT"
        for network in _of_version(CLOSED_DESTINATIONS, version):
            yield f"-i {rules.tunnel} -d {network} -j REJECT --reject-with {_PROHIBITED[version]}"
        yield f"-i {rules.tunnel} -o {rules.uplink} -j ACCEPT"
        yield f"{inwards} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        yield f"{inwards} -m conntrack --ctstate DNAT -j ACCEPT"
    yield f"-i {rules.tunnel} -j DROP"
    yield f"-o {rules.tunnel} -j DROP"
    if not rules.forwards_others:
        yield "-j DROP"


def _of_version(values: Iterable[IpAddress] | Iterable[IpNetwork], version: int) -> Iterator[IpAddress | IpNetwork]:
    return (value for value in values if value.version == version)


def _own(chain: str) -> str:
    return f"WGVSOCK-{chain}"


RunTool = Callable[[Sequence[str], str], Awaitable[tuple[int, str]]]
"""Runs a command with a text on its standard input: exit status and standard error."""


class Netfilter:
    """Puts rulesets in force, one at a time.

    Args:
        backend: ``nft`` or ``iptables``, from `choose_backend`.
        record: Where the undo is written down.
        run: Runs the tools.
    """

    def __init__(self, backend: str, record: Record, *, run: RunTool | None = None) -> None:
        self.backend = backend
        self._record = record
        self._run = run or run_tool

    async def apply(self, rules: Ruleset) -> None:
        """Replace our rules by these in one step.

        Raises:
            NetfilterError: The tool is missing or refused them; the earlier rules stay in force.
        """
        self._record(Undo("netfilter", self.backend))
        if self.backend == "nft":
            await self._call(["nft", "-f", "-"], render_nft(rules))
            return
        for version in (4, 6):
            await self._call([_iptables(version, "-restore"), "-w", "--noflush"], render_iptables(rules, version))
            for table, chain in _JUMPS:
                jump = ["-t", table, "{}", chain, "-j", _own(chain)]
                if (await self._run(_iptables_command(version, jump, "-C"), ""))[0] != 0:
                    await self._call(_iptables_command(version, jump, "-I"), "")

    async def check(self, rules: Ruleset) -> None:
        """Have the rules checked without putting them in force.

        Raises:
            NetfilterError: They would be refused.
        """
        if self.backend == "nft":
            await self._call(["nft", "-c", "-f", "-"], render_nft(rules))
            return
        for version in (4, 6):
            command = [_iptables(version, "-restore"), "-w", "--noflush", "--test"]
            await self._call(command, render_iptables(rules, version))

    async def remove(self) -> None:
        """Take our rules back; it does not matter whether there are any.

        Raises:
            NetfilterError: The tool is missing or failed.
        """
        if self.backend == "nft":
            await self._call(["nft", "-f", "-"], f"table inet {TABLE}\ndelete table inet {TABLE}\n")
            return
        for version in (4, 6):
            for table, chain in _JUMPS:
                for command in (["-D", chain, "-j", _own(chain)], ["-F", _own(chain)], ["-X", _own(chain)]):
                    await self._run([_iptables(version), "-w", "-t", table, *command], "")

    async def _call(self, command: Sequence[str], text: str) -> None:
        status, complaint = await self._run(command, text)
        if status:
            first_line = complaint.strip().splitlines()[0] if complaint.strip() else f"exit status {status}"
            raise NetfilterError(
                f"cannot change the packet filter with {command[0]}",
                why=first_line,
                fix="run with the capability NET_ADMIN on a kernel with nf_tables and NAT (`wgvsock doctor` looks)",
            )


def _iptables(version: int, suffix: str = "") -> str:
    return f"ip{'6' if version == 6 else ''}tables{suffix}"


def _iptables_command(version: int, jump: Sequence[str], verb: str) -> list[str]:
    return [_iptables(version), "-w", *(verb if word == "{}" else word for word in jump)]


async def choose_backend(run: RunTool | None = None, which: Callable[[str], str | None] = shutil.which) -> str:
    """``nft`` where the tool and the kernel's nf_tables are there, else ``iptables``.

    Raises:
        NetfilterError: Neither is installed.
    """
    if which("nft") and (await (run or run_tool)(["nft", "list", "tables"], ""))[0] == 0:
        return "nft"
    if which("iptables-restore") and which("ip6tables-restore"):
        return "iptables"
    if which("nft"):
        return "nft"  # it failed, and says why when it is used
    raise NetfilterError(
        "cannot translate addresses", why="neither nft nor iptables is installed", fix="install nftables"
    )


def performers() -> dict[str, Performer]:
    """The function that takes this module's changes back, for a `Journal`."""
    return {"netfilter": _remove}


async def _remove(backend: str, _value: object) -> None:
    await Netfilter(backend, lambda undo: undo).remove()


async def run_tool(command: Sequence[str], text: str) -> tuple[int, str]:
    """Run nft or iptables with a deadline; exit status (127: not installed, 124: too slow) and standard error."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    try:
        async with asyncio.timeout(_RULES_TIMEOUT):
            _, complaint = await process.communicate(text.encode())
    except TimeoutError:
        return 124, f"{command[0]} did not finish within {_RULES_TIMEOUT:g} s"
    finally:
        # Also when we are cancelled: rules must not come into force after they were taken back.
        if process.returncode is None:
            process.kill()
            await process.communicate()  # to the end of its pipes: the event loop may not outlive this by a turn
    return process.returncode or 0, complaint.decode(errors="replace")
