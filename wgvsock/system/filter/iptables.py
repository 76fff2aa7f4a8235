"""Renders a ruleset as the relay's own iptables chains, for machines without nf_tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from wgvsock.addresses import IpAddress, IpNetwork
from wgvsock.system.filter import probe
from wgvsock.system.filter.iptables_egress import HELPERS, asks_resolver, icmp, render_helpers
from wgvsock.system.filter.nft import with_port
from wgvsock.system.filter.rules import ROUTED_MARK, Ruleset

CHAIN_PREFIX: Final = "WGVSOCK-"

_MAX_CHAIN: Final = 28
"""Bytes of a chain's name (XT_EXTENSION_MAXNAMELEN minus its terminator)."""

_HASH: Final = 6
"""Hexadecimal digits that distinguish the chains of relays whose names are too long and begin alike."""


class Jump(NamedTuple):
    """A jump that leads packets into one of our chains.

    Attributes:
        table: The iptables table.
        hook: The built-in chain that jumps.
        suffix: Suffix of our chain's name.
        verb: ``-I`` puts the jump before other programs' rules, ``-A`` after them.
    """

    table: str
    hook: str
    suffix: str
    verb: str


JUMPS: Final = (
    Jump("filter", "INPUT", "IN", "-I"),
    Jump("filter", "OUTPUT", "OUT", "-I"),
    Jump("filter", "FORWARD", "FWD", "-I"),
    # This chain drops everything that no rule accepts, so it comes after the rules of other relays, which accept their
    # own packets for good.
    Jump("filter", "FORWARD", "LAST", "-A"),
    Jump("mangle", "FORWARD", "MSS", "-I"),
    Jump("mangle", "POSTROUTING", "TEST", "-I"),
    Jump("nat", "PREROUTING", "PRE", "-I"),
    Jump("nat", "POSTROUTING", "POST", "-I"),
    # Added last and removed first: packets without the mark are not routed (`wgvsock.system.routing_rule`).
    Jump("mangle", "PREROUTING", "MARK", "-A"),
)


def chain_name(owner: str, suffix: str) -> str:
    """The name of an owner's chain with this suffix."""
    name = f"{CHAIN_PREFIX}{owner}-{suffix}"
    if len(name) > _MAX_CHAIN:
        short = hashlib.sha256(owner.encode()).hexdigest()[:_HASH]
        kept = _MAX_CHAIN - len(CHAIN_PREFIX) - len(short) - len("--LAST")
        name = f"{CHAIN_PREFIX}{owner[:kept]}-{short}-{suffix}"
    return name


def own_chains(owner: str) -> tuple[str, ...]:
    """The names of all chains of an owner."""
    return tuple(chain_name(owner, suffix) for suffix in (*(jump.suffix for jump in JUMPS), *HELPERS))


def render_iptables(rules: Ruleset, version: int) -> str:
    """Our chains, flushed and filled, for ``iptables-restore --noflush`` (``ip6tables-restore`` for `version` 6)."""
    uplink = rules.uplink(version)
    lines: dict[str, list[str]] = {
        "IN": list(_input(rules, version)),
        # The relay's own packets to its tunnel address go through lo.
        "OUT": [
            "-o lo -j RETURN",
            *(f"-d {network} ! -o {rules.tunnel} -j DROP" for network in _of_version(rules.bound, version)),
        ],
        "FWD": list(_forward(rules, version)),
        "LAST": [
            *(f'-m comment --comment "{fact}"' for fact in rules.before),
            *(["-j DROP"] if version in rules.confined else []),
        ],
        "MARK": [f"-i {rules.tunnel} -j MARK --set-xmark {ROUTED_MARK:#x}/{ROUTED_MARK:#x}"] if rules.is_open else [],
        "MSS": [
            f"-i {rules.tunnel} -j MARK --set-xmark 0x0/{ROUTED_MARK:#x}",
            *(
                f"{direction} {rules.tunnel} -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
                for direction in ("-i", "-o")
            ),
        ],
        "TEST": [f"{match} -j DROP" for match in _probes(rules, version)],
        "PRE": [
            f"-i {uplink} -p {port.protocol} -m addrtype --dst-type LOCAL --dport {port.port} "
            f"-j DNAT --to-destination {with_port(port)}"
            for port in rules.published
            if rules.is_open and uplink and port.destination.version == version
        ],
        "POST": list(_masquerade(rules, version)),
        **render_helpers(rules, version, lambda suffix: chain_name(rules.owner, suffix)),
    }
    text: list[str] = []
    tables = list(dict.fromkeys(jump.table for jump in JUMPS))
    # Each table is applied separately. Translation must be in place before forwarding opens and until after it closes:
    # otherwise a packet in between would leave with the enclave's own address.
    for table in reversed(tables) if rules.is_open else tables:
        suffixes = [jump.suffix for jump in JUMPS if jump.table == table]
        suffixes += HELPERS if table == "filter" else ()
        text.append(f"*{table}")
        text += [f":{chain_name(rules.owner, suffix)} - [0:0]" for suffix in suffixes]
        text += [f"-A {chain_name(rules.owner, suffix)} {line}" for suffix in suffixes for line in lines[suffix]]
        text.append("COMMIT")
    return "\n".join(text) + "\n"


def _masquerade(rules: Ruleset, version: int) -> Iterator[str]:
    uplink = rules.uplink(version)
    if not (rules.is_open and rules.masquerade and uplink):
        return
    for port in rules.withdrawn:
        if port.destination.version == version and (others := port.other_ports):
            yield (
                f"-s {port.destination} -o {uplink} -p {port.protocol} --sport {port.destination_port} "
                f"-j MASQUERADE --to-ports {others[0]}-{others[1]}"
            )
    for network in _of_version(rules.sources, version):
        yield f"-s {network} -o {uplink} -j MASQUERADE"


_PROHIBITED: Final = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


def _input(rules: Ruleset, version: int) -> Iterator[str]:
    yield "-i lo -j RETURN"
    for network in _of_version(rules.bound, version):
        yield f"-s {network} ! -i {rules.tunnel} -j DROP"
    if uplink := rules.uplink(version):
        yield f"-i {uplink} -p tcp -m conntrack --ctstate INVALID -j DROP"
    if rules.is_open:
        yield f"-i {rules.tunnel} -m conntrack --ctstate ESTABLISHED -j ACCEPT"
        yield f"-i {rules.tunnel} -p {icmp(version)} -m conntrack --ctstate RELATED -g {chain_name(rules.owner, 'ERR')}"
        for resolver in rules.resolvers:
            for match in asks_resolver(resolver) if resolver.version == version else ():
                yield f"-i {rules.tunnel} {match} -g {chain_name(rules.owner, 'ADMH')}"
        yield f"-i {rules.tunnel} -g {chain_name(rules.owner, 'HERE')}"
    yield f"-i {rules.tunnel} -j REJECT --reject-with {_PROHIBITED[version]}"


def _forward(rules: Ruleset, version: int) -> Iterator[str]:
    for network in _of_version(rules.bound, version):
        yield f"-d {network} ! -o {rules.tunnel} -j DROP"
        yield f"-s {network} ! -i {rules.tunnel} -j DROP"
    yield f"-i {rules.tunnel} -m conntrack --ctstate INVALID,UNTRACKED -j DROP"
    if rules.masquerade:
        # A flow that began while another program had removed our translation is never translated. nft drops it after
        # translation, where iptables has no filter. Here its first packet looks like that of any new flow.
        yield f"-i {rules.tunnel} -m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT,DNAT -j DROP"
    uplink = rules.uplink(version)
    if rules.is_open:
        out = f"-i {rules.tunnel} -o {uplink}"
        if uplink:
            yield f"{out} -m conntrack --ctstate ESTABLISHED -j ACCEPT"
            yield f"{out} -p {icmp(version)} -m conntrack --ctstate RELATED -g {chain_name(rules.owner, 'ERR')}"
        yield from (f"-i {rules.tunnel} {match} -j ACCEPT" for match in _probes(rules, version))
        yield f"-i {rules.tunnel} -g {chain_name(rules.owner, 'EGR')}"
        if uplink:
            yield f"-i {uplink} -o {rules.tunnel} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
            yield f"-i {uplink} -o {rules.tunnel} -m conntrack --ctstate DNAT -j ACCEPT"
    yield f"-i {rules.tunnel} -j DROP"
    yield f"-o {rules.tunnel} -j DROP"


def _probes(rules: Ruleset, version: int) -> Iterator[str]:
    for network in _of_version(rules.sources, version):
        yield f"-s {network} -d {probe.DESTINATIONS[version]} -p tcp --dport {probe.PORT}"


def _of_version(values: Iterable[IpAddress] | Iterable[IpNetwork], version: int) -> Iterator[IpAddress | IpNetwork]:
    return (value for value in values if value.version == version)
