"""Finds rules that are valid but have no effect, before an operator relies on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from wgvsock.addresses import IpNetwork
from wgvsock.egress.closed import within
from wgvsock.egress.names import NamePattern
from wgvsock.egress.policy import Policy, Rule
from wgvsock.settings import Advice, KeyPath

_LOCAL: Final[tuple[IpNetwork, ...]] = tuple(
    map(ip_network, ("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128", "::ffff:0:0/96"))
)
"""Networks that an enclave's kernel never sends packets to."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that has no effect.

    Attributes:
        rule: The rule.
        why: Why it has no effect.
        fix: What to do about it.
    """

    rule: Rule
    why: str
    fix: str

    def advice(self, table: KeyPath) -> Advice:
        """The finding as advice about a file.

        Args:
            table: Where the policy's table is in the file.
        """
        key = (*table, "allow" if self.rule.allows else "deny", self.rule.position - 1)
        return Advice(key, f'the rule "{self.rule}" has no effect', self.why, self.fix)


def review(policy: Policy) -> Iterator[Finding]:
    """Find the rules that never match or that change nothing. Each rule is reported once."""
    for rules in (policy.allow, policy.deny):
        for position, rule in enumerate(rules):
            found = _finding(policy, rule, rules[:position])
            if found is not None:
                yield Finding(rule, *found)


def _finding(policy: Policy, rule: Rule, before: tuple[Rule, ...]) -> tuple[str, str] | None:
    if rule.network is not None and any(within(rule.network, local) for local in _LOCAL):
        return "an enclave sends nothing to this network through its tunnel", "remove the rule"
    for other in before:
        if covers(other, rule):
            return (
                f'it never matches: {other.key}, "{other}", comes first and covers it',
                "remove one of the two",
            )
    if not rule.allows:
        return None
    for other in policy.deny:
        if _denies(other, rule):
            return (
                f'it never matches: {other.key}, "{other}", denies everything that it allows',
                "remove one of the two",
            )
    if policy.allows_by_default and not rule.relay and not rule.opens_closed:
        return 'it changes nothing: default = "allow" allows that already', 'write default = "deny", or remove the rule'
    return None


def covers(outer: Rule, inner: Rule) -> bool:
    """Whether `outer` matches everything that `inner` matches, given two allow rules or two deny rules."""
    if not _is_about_all(outer, inner):
        return False
    if inner.name is not None:
        return outer.name is not None and _pattern_covers(outer.name, inner.name)
    if inner.relay or outer.relay:
        return inner.relay and outer.relay
    if inner.opens_closed and not outer.opens_closed:
        return False  # a wider network does not open a closed one
    return any(within(network, wide) for network in inner.networks[:1] for wide in outer.networks)


def _denies(deny: Rule, allow: Rule) -> bool:
    """Whether a deny rule overrides everything that an allow rule allows."""
    if deny.name is not None:
        # A denied name gets no address, whatever the rule's protocol and ports are.
        return allow.name is not None and _pattern_covers(deny.name, allow.name)
    if not _is_about_all(deny, allow):
        return False
    if deny.relay or allow.relay:
        return deny.relay and allow.relay
    return allow.network is not None and any(within(allow.network, network) for network in deny.networks)


def _is_about_all(outer: Rule, inner: Rule) -> bool:
    return inner.protocols <= outer.protocols and (
        not outer.ports or inner.protocols == {"icmp"} or (bool(inner.ports) and set(inner.ports) <= set(outer.ports))
    )


def _pattern_covers(outer: NamePattern, inner: NamePattern) -> bool:
    return outer == inner or (outer.text.startswith("*") and inner.text.endswith(outer.text[1:]))
