"""Renders a ruleset as one nftables table that belongs to the relay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from wgvsock.addresses import DNS_PORT
from wgvsock.egress.policy import ICMP
from wgvsock.system.filter import probe
from wgvsock.system.filter.nft_egress import asks_resolver, ip, render_chains, render_sets
from wgvsock.system.filter.rules import ROUTED_MARK, TUNNEL_GROUP, Element, PublishedPort, Ruleset

TABLE_PREFIX: Final = "wgvsock-"

_PROHIBITED: Final = "counter reject with icmpx type admin-prohibited"

_ICMP: Final = f"{{ {ICMP[4]}, {ICMP[6]} }}"


def table_name(owner: str) -> str:
    """The name of an owner's table."""
    return TABLE_PREFIX + owner


def render_nft(rules: Ruleset, pinned: Collection[Element] = ()) -> str:
    """The whole table for ``nft -f -``: it replaces any earlier one in a single transaction.

    Args:
        rules: The ruleset.
        pinned: The pinned addresses of the policy's names.
    """
    return "\n".join(_lines(rules, pinned)) + "\n"


def render_removal(owner: str) -> str:
    """Commands that remove the table whether or not it exists."""
    table = table_name(owner)
    return f"table inet {table}\ndelete table inet {table}\n"


def _lines(rules: Ruleset, pinned: Collection[Element]) -> Iterator[str]:
    yield from render_removal(rules.owner).splitlines()
    yield f"table inet {table_name(rules.owner)} {{"
    yield "\tchain before {"  # has no hook: it only stores facts
    yield from (f'\t\tcounter comment "{fact}"' for fact in rules.before)
    yield "\t}"
    if rules.is_open:
        yield from render_sets(rules, pinned)
        for name, lines in render_chains(rules):
            yield f"\tchain {name} {{"
            yield from (f"\t\t{line}" for line in lines)
            yield "\t}"
    yield from _chain("untracked", "filter", "raw", _untracked_in(rules), hook="prerouting")
    yield from _chain("untracked_answers", "filter", "raw", _untracked_out(rules), hook="output")
    yield from _chain("input", "filter", "filter", _input(rules))
    yield from _chain("output", "filter", "filter", _output(rules))
    yield from _chain("forward", "filter", "filter", _forward(rules))
    yield from _chain("mangle", "filter", "mangle", _mangle(rules), hook="forward")
    yield from _chain("prerouting", "nat", "dstnat", _prerouting(rules))
    yield from _chain("marking", "filter", "filter", _mark(rules), hook="prerouting")
    yield from _chain("postrouting", "nat", "srcnat", _postrouting(rules))
    yield from _chain("untranslated", "filter", "srcnat + 10", _untranslated(rules), hook="postrouting")
    yield from _chain("probe", "filter", "mangle", _probe(rules), hook="postrouting")
    yield "}"


def _chain(name: str, kind: str, priority: str, lines: Iterable[str], *, hook: str = "") -> Iterator[str]:
    yield f"\tchain {name} {{"
    yield f"\t\ttype {kind} hook {hook or name} priority {priority}; policy accept;"
    yield from (f"\t\t{line}" for line in lines)
    yield "\t}"


def _input(rules: Ruleset) -> Iterator[str]:
    # The relay's own packets to its tunnel address come through lo.
    yield from _bound(rules, "saddr", f'iifname != {{ "{rules.tunnel}", "lo" }}')
    # Packets that connection tracking finds invalid are not translated: a packet for the enclave would end here, and
    # the kernel would reset the enclave's connection. Protocols are written as numbers: their names are in
    # /etc/protocols, which slim images and enclaves lack.
    for uplink in rules.uplink_names:
        yield f'iifname "{uplink}" meta l4proto 6 ct state invalid counter drop'
    tunnel = f'iifname "{rules.tunnel}"'
    if rules.is_open:
        yield f"{tunnel} ct state established accept"
        yield f"{tunnel} meta l4proto {_ICMP} ct state related goto errors"
        for resolver in rules.forwarders:
            yield f"{tunnel} {ip(resolver)} daddr {resolver} udp dport {DNS_PORT} accept"
        yield from (f"{tunnel} {asks_resolver(resolver)} goto admit_here" for resolver in rules.resolvers)
        yield f"{tunnel} goto here"
    yield f"{tunnel} {_PROHIBITED}"


def _output(rules: Ruleset) -> Iterator[str]:
    yield from _bound(rules, "daddr", f'oifname != {{ "{rules.tunnel}", "lo" }}')


def _bound(rules: Ruleset, direction: str, elsewhere: str) -> Iterator[str]:
    for network in rules.bound:
        yield f"{ip(network)} {direction} {network} {elsewhere} counter drop"


def _untracked_in(rules: Ruleset) -> Iterator[str]:
    # Each query would occupy a flow for half a minute. Many queries in a row would fill connection tracking.
    for resolver in rules.forwarders if rules.is_open else ():
        yield f'iifname "{rules.tunnel}" {ip(resolver)} daddr {resolver} udp dport {DNS_PORT} notrack'


def _untracked_out(rules: Ruleset) -> Iterator[str]:
    for resolver in rules.forwarders if rules.is_open else ():
        yield f'oifname "{rules.tunnel}" {ip(resolver)} saddr {resolver} udp sport {DNS_PORT} notrack'


def _forward(rules: Ruleset) -> Iterator[str]:
    tunnel = f'"{rules.tunnel}"'
    yield from _bound(rules, "daddr", f"oifname != {tunnel}")
    yield from _bound(rules, "saddr", f"iifname != {tunnel}")
    # Invalid and untracked packets would leave with the enclave's own address, past the policy.
    yield f"iifname {tunnel} ct state invalid,untracked counter drop"
    if rules.is_open:
        ways = [(version, uplink) for version in rules.versions if (uplink := rules.uplink(version))]
        for version, uplink in ways:
            out = f'iifname {tunnel} oifname "{uplink}" meta nfproto ipv{version}'
            yield f"{out} ct state established accept"
            yield f"{out} meta l4proto {ICMP[version]} ct state related goto errors"
        yield from (f"iifname {tunnel} {match} accept" for match in _probes(rules))
        yield f"iifname {tunnel} goto egress"
        for version, uplink in ways:
            back = f'iifname "{uplink}" oifname {tunnel} meta nfproto ipv{version}'
            yield f"{back} ct state established,related accept"
            yield f"{back} ct status dnat accept"
    yield f"iifname {tunnel} counter drop"
    yield f"oifname {tunnel} counter drop"
    for version in sorted(rules.confined):
        yield f"meta nfproto ipv{version} iifgroup != {TUNNEL_GROUP} oifgroup != {TUNNEL_GROUP} counter drop"


def _mark(rules: Ruleset) -> Iterator[str]:
    if rules.is_open:
        yield f'iifname "{rules.tunnel}" meta mark set meta mark | {ROUTED_MARK:#x}'


def _mangle(rules: Ruleset) -> Iterator[str]:
    yield f'iifname "{rules.tunnel}" meta mark set meta mark & {~ROUTED_MARK & 0xFFFFFFFF:#x}'
    for direction in ("iifname", "oifname"):
        yield f'{direction} "{rules.tunnel}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu'


def _prerouting(rules: Ruleset) -> Iterator[str]:
    for port in rules.published if rules.is_open else ():
        version = port.destination.version
        if uplink := rules.uplink(version):
            yield (
                f'iifname "{uplink}" fib daddr type local meta nfproto ipv{version} '
                f"{port.protocol} dport {port.port} dnat {ip(port.destination)} to {with_port(port)}"
            )


def _postrouting(rules: Ruleset) -> Iterator[str]:
    if not (rules.is_open and rules.masquerade):
        return
    for port in rules.withdrawn:
        uplink, others = rules.uplink(port.destination.version), port.other_ports
        if uplink and others:
            yield (
                f'oifname "{uplink}" {ip(port.destination)} saddr {port.destination} '
                f"{port.protocol} sport {port.destination_port} masquerade to :{others[0]}-{others[1]}"
            )
    for network in rules.sources:
        if uplink := rules.uplink(network.version):
            yield f'oifname "{uplink}" {ip(network)} saddr {network} masquerade'


def _untranslated(rules: Ruleset) -> Iterator[str]:
    # A flow that began while another program had removed our translation is never translated: connection tracking
    # decides once for the flow's whole life, and the flow would continue with the enclave's own address.
    for network in rules.sources if rules.masquerade else ():
        yield f'oifname != {{ "{rules.tunnel}", "lo" }} {ip(network)} saddr {network} counter drop'


def _probe(rules: Ruleset) -> Iterator[str]:
    yield from (f"{match} counter drop" for match in _probes(rules))


def _probes(rules: Ruleset) -> Iterator[str]:
    """Matches for our own probes: no policy applies to them, and they end after all other programs' rules."""
    for network in rules.sources:
        yield (
            f"{ip(network)} saddr {network} {ip(network)} daddr {probe.DESTINATIONS[network.version]} "
            f"tcp dport {probe.PORT}"
        )


def with_port(port: PublishedPort) -> str:
    """The enclave's end of a published port, as nft and iptables write it."""
    host = f"[{port.destination}]" if port.destination.version == 6 else str(port.destination)
    return f"{host}:{port.destination_port}"
