"""What the enclave may reach, as iptables chains.

They are the chains of `wgvsock.system.filter.nft_egress`, without names and without a list of denied destinations:
iptables has no sets whose elements expire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from wgvsock.addresses import DNS_PORT, IpAddress
from wgvsock.egress.closed import CLOSED_NETWORKS
from wgvsock.egress.policy import ECHO_REQUEST, Rule
from wgvsock.egress.verdict import Reason
from wgvsock.system.filter.rules import ICMP_ERRORS, Crowd, Ruleset

HELPERS: Final = ("EGR", "HERE", "ADM", "ADMH", "ERR", "LIM", "DENY")
"""Suffixes of the chains in the table ``filter`` that our others lead to: see `wgvsock.system.filter.nft_egress`."""

_REJECTS: Final = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}


def icmp(version: int) -> str:
    """The name that iptables has for the ICMP of an IP version."""
    return "icmp" if version == 4 else "ipv6-icmp"


def asks_resolver(resolver: IpAddress) -> Iterator[str]:
    """Matches for packets to a name server, even if another program translates its address."""
    for protocol in ("tcp", "udp"):
        yield f"-p {protocol} -m conntrack --ctorigdst {resolver} --ctorigdstport {DNS_PORT}"


def render_helpers(rules: Ruleset, version: int, chain: Callable[[str], str]) -> dict[str, list[str]]:
    """The lines of each of `HELPERS`.

    Args:
        rules: The ruleset. The chains of a closed one are empty.
        version: The IP version.
        chain: Returns the name of a chain by its suffix.
    """
    if not rules.is_open:
        return {suffix: [] for suffix in HELPERS}
    return {
        "EGR": list(_egress(rules, version, chain)),
        "HERE": list(_here(rules, version, chain)),
        "ADM": [
            f"-j {chain('LIM')}",
            *([f"-o {uplink} -j ACCEPT"] if (uplink := rules.uplink(version)) else []),
            "-j DROP",
        ],
        "ADMH": [f"-j {chain('LIM')}", "-j ACCEPT"],
        "ERR": list(_errors(rules, version)),
        "LIM": list(_limits(rules, chain)),
        "DENY": ["-p tcp -j REJECT --reject-with tcp-reset", f"-j REJECT --reject-with {_REJECTS[version]}"],
    }


def _egress(rules: Ruleset, version: int, chain: Callable[[str], str]) -> Iterator[str]:
    for resolver in rules.resolvers:
        if resolver.version == version:
            for match in asks_resolver(resolver):
                yield _counted(match, Reason.RESOLVER.value, chain("ADM"))
    for rule in rules.policy.deny:
        yield from _network_rule(rule, version, chain("DENY"))
    for rule in rules.policy.allow:
        if rule.opens_closed:
            yield from _network_rule(rule, version, chain("ADM"))
    yield from _closed(version, chain("DENY"))
    for rule in rules.policy.allow:
        if not rule.opens_closed:
            yield from _network_rule(rule, version, chain("ADM"))
    target = chain("ADM" if rules.policy.allows_by_default else "DENY")
    # Rules cover only these protocols, so no other protocol was allowed further up.
    for match in ("-p tcp", "-p udp", _echo(version)):
        yield _counted(match, Reason.DEFAULT.value, target)
    yield _counted("", Reason.PROTOCOL.value, chain("DENY"))


def _here(rules: Ruleset, version: int, chain: Callable[[str], str]) -> Iterator[str]:
    yield f"{_echo(version)} -j ACCEPT"
    for rule in rules.policy.deny:
        yield from (
            _relay_rule(rule, version, chain("DENY")) if rule.relay else _network_rule(rule, version, chain("DENY"))
        )
    yield from _closed(version, chain("DENY"))
    for rule in rules.policy.allow:
        if rule.relay:
            yield from _relay_rule(rule, version, chain("ADMH"))
    yield _counted("", Reason.RELAY.value, chain("DENY"))


def _closed(version: int, target: str) -> Iterator[str]:
    for network in CLOSED_NETWORKS:
        if network.version == version:
            yield _counted(f"-m conntrack --ctorigdst {network}", Reason.CLOSED.value, target)
            yield _counted(f"-d {network}", Reason.CLOSED.value, target)


def _network_rule(rule: Rule, version: int, target: str) -> Iterator[str]:
    for network in rule.networks:
        if network.version == version:
            for protocol in _protocols(rule, version):
                for port in rule.ports or (None,):
                    at = "" if port is None else f" --ctorigdstport {port}"
                    yield _counted(f"{protocol} -m conntrack --ctorigdst {network}{at}", rule.key, target)


def _relay_rule(rule: Rule, version: int, target: str) -> Iterator[str]:
    for protocol in _protocols(rule, version):
        for port in rule.ports or (None,):
            at = "" if port is None else f" -m conntrack --ctorigdstport {port}"
            yield _counted(protocol + at, rule.key, target)


def _errors(rules: Ruleset, version: int) -> Iterator[str]:
    for network in rules.sources:
        if network.version == version:
            for kind in ICMP_ERRORS[version]:
                for side in ("--ctorigsrc", "--ctreplsrc"):
                    yield f"{_icmp_type(version)} {kind} -m conntrack {side} {network} -j ACCEPT"
    yield f'-m comment --comment "{Crowd.FOREIGN_ERRORS.value}" -j DROP'


def _limits(rules: Ruleset, chain: Callable[[str], str]) -> Iterator[str]:
    # The name of a table in /proc/net/ipt_hashlimit, shared by the network namespace. An existing one keeps its rate.
    name = "wgv" + hashlib.sha256(f"{rules.owner} {rules.max_new_flows}".encode()).hexdigest()[:10]
    rate = f"--hashlimit-above {rules.max_new_flows}/sec --hashlimit-burst {rules.max_new_flows}"
    yield _counted(f"-m hashlimit {rate} --hashlimit-name {name}", Crowd.NEW_FLOWS.value, chain("DENY"))
    most = f"--connlimit-above {rules.max_flows} --connlimit-mask 0"
    yield _counted(f"-m connlimit {most}", Crowd.FLOWS.value, chain("DENY"))


def _protocols(rule: Rule, version: int) -> Iterator[str]:
    for name in sorted(rule.protocols):
        yield _echo(version) if name == "icmp" else f"-p {name}"


def _echo(version: int) -> str:
    return f"{_icmp_type(version)} {ECHO_REQUEST[version]}"


def _icmp_type(version: int) -> str:
    option = "-m icmp --icmp-type" if version == 4 else "-m icmp6 --icmpv6-type"
    return f"-p {icmp(version)} {option}"


def _counted(match: str, key: str, target: str) -> str:
    return f'{match} -m comment --comment "{key}" -g {target}'.strip()
