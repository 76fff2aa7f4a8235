"""Finds valid settings that do less or more than an operator may expect.

``wgvsock config check`` shows these findings. None of them stops a relay.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from wgvsock.egress.closed import within
from wgvsock.egress.policy import Policy
from wgvsock.egress.review import Finding, review
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.settings import Advice, KeyPath


def advise(config: RelayConfig) -> tuple[Advice, ...]:
    """Find settings to reconsider, in the order of the enclaves. A shared table is reported only once."""
    found: dict[Advice, None] = {}
    for position, spec in enumerate(config.specs()):
        entry: KeyPath = ("enclaves", position) if config.enclaves else ()
        has_own = bool(config.enclaves) and config.enclaves[position].egress is not None
        where: KeyPath = (*entry, "egress") if has_own else ("egress",)
        dns: KeyPath = (*entry, "dns") if config.enclaves and config.enclaves[position].dns is not None else ("dns",)
        found |= dict.fromkeys(_advise(spec, where, dns))
    return tuple(found)


def advise_without_nft(config: RelayConfig) -> tuple[Advice, ...]:
    """Find settings to reconsider on a machine that has iptables but not nftables."""
    if not any(spec.egress.policy().has_names for spec in config.specs()):
        return ()
    return (
        Advice(
            ("egress",),
            "a relay with rules for names does not start with iptables",
            why="names need nftables, and this machine has only iptables",
            fix="install nftables where the relay runs",
        ),
    )


def _advise(spec: EnclaveSpec, where: KeyPath, dns: KeyPath) -> Iterator[Advice]:
    policy = spec.egress.policy()
    for finding in (*review(policy), *_unreachable(spec, policy)):
        yield finding.advice(where)
    if policy.has_names and spec.dns.forward is False:
        yield Advice(
            (*dns, "forward"),
            "no rule for a name can match",
            why="without the forwarder, the relay does not learn the addresses of names",
            fix='remove "forward"',
        )
    if policy.allows_by_default and not policy.deny:
        yield Advice(
            (*where, "default"),
            "the enclave can reach whatever its pod or parent can: the node, other pods, the cluster's services",
            why='with default = "allow", no network is denied (this check cannot see a NetworkPolicy)',
            fix='write default = "deny" and allow what is needed, or a NetworkPolicy: docs/operations.md has one',
        )


def _unreachable(spec: EnclaveSpec, policy: Policy) -> Iterator[Finding]:
    own = [ip_network(address.ip) for address in spec.interface.addresses]
    routes = spec.enclave.routes
    for rule in policy.allow:
        network = rule.network
        if network is None:
            continue
        if any(within(network, address) for address in own):
            yield Finding(rule, "it never matches: that is the relay's own machine", "write relay = true")
        elif routes and not any(within(network, route) or within(route, network) for route in routes):
            why = 'it never matches: "routes" sends no packets of the enclave there'
            yield Finding(rule, why, 'add the network to "routes"')
