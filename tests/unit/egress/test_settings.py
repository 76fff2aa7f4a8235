"""A policy as TOML has it, and what is refused, with its line."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from wgvsock.egress.settings import MAX_PORTS, MAX_RULES, PolicySettings
from wgvsock.errors import ConfigurationError
from wgvsock.settings import parse


def test_nothing_is_denied_by_default() -> None:
    assert parse(PolicySettings, "").policy().allows_by_default


def test_what_a_rule_is_about_by_default() -> None:
    """TCP for what is allowed, all for what is denied. Ping has no ports."""
    policy = parse(
        PolicySettings,
        """
        default = "deny"
        allow = [{name = "a.test"}, {network = "10.0.0.0/8", protocol = "any", ports = [53, 53]}]
        deny = [{network = "10.1.0.0/16"}, {relay = true, ports = [22]}]
        """,
    ).policy()
    assert [rule.protocols for rule in policy.allow] == [{"tcp"}, {"tcp", "udp"}]
    assert [rule.protocols for rule in policy.deny] == [{"tcp", "udp", "icmp"}, {"tcp", "udp"}]
    assert policy.allow[1].ports == (53,)
    assert policy.allow[1].network == ip_network("10.0.0.0/8")
    assert policy.deny[1].relay
    assert not policy.allows_by_default


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[allow]]\nports = [80]", "line 1: cannot use this rule: it has no target"),
        ('[[allow]]\nname = "a.test"\nrelay = true', "line 1: cannot use this rule: it has more than one target"),
        ('[[allow]]\nname = "a..test"', "cannot use the name"),
        ('[[allow]]\nname = "a.test"\nprotocol = "icmp"\nports = [80]', 'line 4: cannot use "ports" here'),
        (f'[[allow]]\nname = "a.test"\nports = {list(range(1, MAX_PORTS + 2))}', "line 3: cannot use .ports.: a rule"),
        ('[[allow]]\nname = "a.test"\nports = [0]', "is outside 1 to 65535"),
        ('[[allow]]\nnetwork = "10.0.0.1/8"', "host bits set"),
        ('[[deny]]\nname = "a.test"', "line 2: cannot deny the name"),
        ("[[deny]]\nrelay = true\n" * (MAX_RULES + 1), f"the limit is {MAX_RULES}"),
        ('default = "closed"', "deny"),
    ],
)
def test_what_is_refused(text: str, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        parse(PolicySettings, text)


def test_a_name_is_denied_where_names_are_what_is_allowed() -> None:
    policy = parse(PolicySettings, 'default = "deny"\nallow = [{name = "*.test"}]\ndeny = [{name = "a.test"}]').policy()
    assert policy.allows_name("b.test")
    assert not policy.allows_name("a.test")
