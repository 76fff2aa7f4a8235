"""What the enclave may reach, as nft chains and sets.

Only the first packet of a flow gets here: later ones have been accepted by then. It passes these chains, in the order
of `wgvsock.egress.verdict`::

    egress   to the uplink: name servers, protocols, deny rules, closed networks, allow rules, the default
    here     to the relay's own machine: ping, protocols, deny rules, closed networks, rules for the relay
    admit    allowed: subject to the limits on flows, and only to the uplink
    deny     denied: note the destination, and tell the sender at once

Rules match the destination that the enclave wrote, even if another program of this machine translates it, as kube-proxy
does with a service's address. Only the closed networks are matched against both destinations.

Comments identify the rules by the keys of `Rule` and `Reason`. `wgvsock.system.filter.egress_listing` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from wgvsock.addresses import DNS_PORT, IpAddress, IpNetwork
from wgvsock.egress.closed import CLOSED_NETWORKS
from wgvsock.egress.names import MAX_PINS
from wgvsock.egress.policy import ECHO_REQUEST, ICMP, TCP, UDP, Policy, Rule
from wgvsock.egress.verdict import Reason
from wgvsock.system.filter.rules import ICMP_ERRORS, Crowd, Element, Ruleset

MAX_DENIED: Final = 1024
"""Destinations in each set of denied ones. Bounded because the enclave chooses them. Each costs a few hundred bytes."""

DENIED_TIMEOUT: Final = 300
"""Seconds after which a denied destination expires. The sets are read more often than that."""

PINNED_COMMENT: Final = "pinned"
"""First word of an element's comment, followed by the name."""

_VERSIONS: Final = (4, 6)
_WITH_PORTS: Final = f"meta l4proto {{ {TCP}, {UDP} }}"


def ip(value: IpAddress | IpNetwork | int) -> str:
    """The name that nft has for an address family."""
    version = value if isinstance(value, int) else value.version
    return "ip" if version == 4 else "ip6"


def set_name(rule: Rule, version: int) -> str:
    """The name of the set with the addresses of a rule's names."""
    return f"{rule.key.replace(' ', '_')}_v{version}"


def denied_set(version: int, *, ports: bool) -> str:
    """The name of the set with the denied destinations, with or without ports."""
    return f"denied{'' if ports else '_portless'}_v{version}"


def render_sets(rules: Ruleset, pinned: Collection[Element]) -> Iterator[str]:
    """The sets that the chains look up, with the current pins."""
    for rule in rules.policy.name_rules:
        for version in _VERSIONS:
            yield f"\tset {set_name(rule, version)} {{"
            # Twice the size: expired elements are not removed at once.
            yield f"\t\ttype {_address_type(version)}; size {2 * MAX_PINS}; flags timeout;"
            elements = [
                _element(element)
                for element in pinned
                if element.rule == rule and element.address.version == version and element.seconds > 0
            ]
            if elements:
                yield f"\t\telements = {{ {', '.join(elements)} }}"
            yield "\t}"
    for version in _VERSIONS:
        for ports in (True, False):
            yield f"\tset {denied_set(version, ports=ports)} {{"
            kind = f"{_address_type(version)} . inet_proto{' . inet_service' if ports else ''}"
            yield f"\t\ttype {kind}; size {MAX_DENIED}; flags dynamic,timeout; timeout {DENIED_TIMEOUT}s;"
            yield "\t}"


def render_chains(rules: Ruleset) -> Iterator[tuple[str, Iterable[str]]]:
    """Names and lines of the chains. A chain comes before those that lead to it."""
    yield "refuse", _refuse()
    yield "deny", _deny()
    yield "limits", _limits(rules)
    yield "admit", _admit(rules)
    yield "admit_here", ("jump limits", "accept")
    yield "errors", _errors(rules)
    yield "egress", _egress(rules)
    yield "here", _here(rules)


def render_pins(table: str, elements: Iterable[Element]) -> str:
    """A transaction that sets each element's remaining time, or removes the element if none is left.

    Not every kernel extends the time of an element that is added again, so it is removed and added in one step.
    """
    lines: list[str] = []
    for element in elements:
        where = f"element inet {table} {set_name(element.rule, element.address.version)}"
        # Only an existing element can be deleted.
        lines.append(f"add {where} {{ {element.address} timeout 1s }}")
        lines.append(f"delete {where} {{ {element.address} }}")
        if element.seconds > 0:
            lines.append(f"add {where} {{ {_element(element)} }}")
    return "".join(f"{line}\n" for line in lines)


def _element(element: Element) -> str:
    name = f' comment "{PINNED_COMMENT} {element.name}"' if element.name else ""
    return f"{element.address} timeout {max(1, round(element.seconds * 1000))}ms{name}"


def _address_type(version: int) -> str:
    return f"ipv{version}_addr"


def asks_resolver(resolver: IpAddress) -> str:
    """A match for packets to a name server, even if another program translates its address."""
    return f"{_WITH_PORTS} ct original proto-dst {DNS_PORT} {_to(str(resolver), resolver.version)}"


# Chains.


def _egress(rules: Ruleset) -> Iterator[str]:
    for resolver in rules.resolvers:
        yield _counted(asks_resolver(resolver), Reason.RESOLVER.value, "admit")
    yield from _closed_protocols()
    yield from _denied(rules.policy, here=False)
    for rule in rules.policy.allow:
        if rule.opens_closed:
            yield from _network_rule(rule, "admit")
    yield from _closed_networks()
    for rule in rules.policy.allow:
        if rule.name is not None:
            for version in _VERSIONS:
                yield _counted(
                    f"{_about(rule, version)} {_to(f'@{set_name(rule, version)}', version)}", rule.key, "admit"
                )
        elif not rule.opens_closed:
            yield from _network_rule(rule, "admit")
    yield _counted("", Reason.DEFAULT.value, "admit" if rules.policy.allows_by_default else "deny")


def _here(rules: Ruleset) -> Iterator[str]:
    # Monitoring of the tunnel pings the relay.
    for version in _VERSIONS:
        yield f"{_icmp_type(version)} {ECHO_REQUEST[version]} accept"
    yield from _closed_protocols()
    yield from _denied(rules.policy, here=True)
    yield from _closed_networks()
    for rule in rules.policy.allow:
        if rule.relay:
            yield from _relay_rule(rule, "admit_here")
    yield _counted("", Reason.RELAY.value, "deny")


def _closed_protocols() -> Iterator[str]:
    for version in _VERSIONS:
        known = sorted((TCP, UDP, ICMP[version]))
        family = f"meta nfproto ipv{version}"
        yield _counted(f"{family} meta l4proto != {_values(known)}", Reason.PROTOCOL.value, "deny")
        yield _counted(f"{_icmp_type(version)} != {ECHO_REQUEST[version]}", Reason.PROTOCOL.value, "deny")


def _closed_networks() -> Iterator[str]:
    for version in _VERSIONS:
        closed = _values([network for network in CLOSED_NETWORKS if network.version == version])
        # Both the destination that the enclave wrote and the one that another program may have translated it to.
        yield _counted(_to(closed, version), Reason.CLOSED.value, "deny")
        yield _counted(f"{ip(version)} daddr {closed}", Reason.CLOSED.value, "deny")


def _denied(policy: Policy, *, here: bool) -> Iterator[str]:
    for rule in policy.deny:
        if rule.network is not None:
            yield from _network_rule(rule, "deny")
        elif rule.relay and here:
            yield from _relay_rule(rule, "deny")


def _network_rule(rule: Rule, target: str) -> Iterator[str]:
    for version in _VERSIONS:
        if networks := [network for network in rule.networks if network.version == version]:
            yield _counted(f"{_about(rule, version)} {_to(_values(networks), version)}", rule.key, target)


def _relay_rule(rule: Rule, target: str) -> Iterator[str]:
    for version in _VERSIONS:
        yield _counted(f"meta nfproto ipv{version} {_about(rule, version)}", rule.key, target)


def _admit(rules: Ruleset) -> Iterator[str]:
    yield "jump limits"
    for version in rules.versions:
        if uplink := rules.uplink(version):
            yield f'oifname "{uplink}" meta nfproto ipv{version} accept'
    yield "counter drop"


def _limits(rules: Ruleset) -> Iterator[str]:
    rate = f"limit rate over {rules.max_new_flows}/second burst {rules.max_new_flows} packets"
    yield _counted(rate, Crowd.NEW_FLOWS.value, "refuse")
    yield _counted(f"ct count over {rules.max_flows}", Crowd.FLOWS.value, "refuse")


def _deny() -> Iterator[str]:
    # If a set is full, evaluation of that rule stops there. The next step is therefore a separate rule.
    for version in _VERSIONS:
        destination = f"ct original {ip(version)} daddr . meta l4proto"
        family = f"meta nfproto ipv{version} meta l4proto"
        yield (
            f"{family} {{ {TCP}, {UDP} }} update @{denied_set(version, ports=True)} "
            f"{{ {destination} . th dport counter }}"
        )
        yield (f"{family} != {{ {TCP}, {UDP} }} update @{denied_set(version, ports=False)} {{ {destination} counter }}")
    yield "goto refuse"


def _refuse() -> Iterator[str]:
    # The kernel limits ICMP errors per second to one address, but not TCP resets.
    yield f"meta l4proto {TCP} reject with tcp reset"
    yield "reject with icmpx type admin-prohibited"


def _errors(rules: Ruleset) -> Iterator[str]:
    """Accept ICMP errors about the enclave's flows. Connection tracking relates errors to anybody's flows."""
    for network in rules.sources:
        kinds = _values(ICMP_ERRORS[network.version])
        for side in ("original", "reply"):  # whichever side opened the flow
            yield f"{_icmp_type(network.version)} {kinds} ct {side} {ip(network)} saddr {network} accept"
    yield f'counter drop comment "{Crowd.FOREIGN_ERRORS.value}"'


def _counted(match: str, key: str, target: str) -> str:
    return f'{match} counter goto {target} comment "{key}"'.strip()


def _about(rule: Rule, version: int) -> str:
    numbers = {"tcp": TCP, "udp": UDP, "icmp": ICMP[version]}
    protocols = f"meta l4proto {_values(sorted(numbers[name] for name in rule.protocols))}"
    return f"{protocols} ct original proto-dst {_values(rule.ports)}" if rule.ports else protocols


def _to(where: str, version: int) -> str:
    return f"ct original {ip(version)} daddr {where}"


def _icmp_type(version: int) -> str:
    return "icmp type" if version == 4 else "icmpv6 type"


def _values(values: Iterable[object]) -> str:
    return f"{{ {', '.join(map(str, values))} }}"
