"""What the enclave may reach, as nft's chains and sets. The kernel's own view is in tests/e2e/test_egress_policy.py."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests import egress_cases
from tests.unit.packet_filter import RULES
from wgvsock.egress.closed import CLOSED_NETWORKS
from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.system.filter.nft import render_nft
from wgvsock.system.filter.nft_egress import MAX_DENIED, render_pins
from wgvsock.system.filter.rules import Element, Ruleset

NAMES = replace(RULES, policy=egress_cases.policy("names"))
NETWORKS = replace(RULES, policy=egress_cases.policy("networks"))
EXCEPTIONS = replace(RULES, policy=egress_cases.policy("exceptions"))
WWW, EXAMPLE = NAMES.policy.name_rules


def chain(rules: Ruleset, name: str) -> list[str]:
    lines = [line.strip() for line in render_nft(rules).splitlines()]
    start = lines.index(f"chain {name} {{")
    return lines[start + 1 : lines.index("}", start)]


def keys(rules: Ruleset, name: str) -> list[str]:
    """The comments of a chain's rules, each once."""
    return list(
        dict.fromkeys(line.rpartition('comment "')[2].rstrip('"') for line in chain(rules, name) if "comment" in line)
    )


def test_the_order_is_that_of_a_verdict() -> None:
    assert keys(NAMES, "egress") == [
        "resolver",
        "protocol",
        "deny 2",
        "closed network",
        "allow 1",
        "allow 2",
        "default",
    ]
    assert keys(EXCEPTIONS, "egress") == [
        *("resolver", "protocol", "deny 1", "deny 2", "allow 1", "allow 2"),
        *("closed network", "default"),
    ]
    assert keys(EXCEPTIONS, "here") == ["protocol", "deny 1", "deny 2", "closed network", "allow 3", "relay machine"]


def test_a_name_is_looked_up_in_a_set_of_each_family() -> None:
    about = "meta l4proto { 6 } ct original proto-dst { 443 }"
    assert [line for line in chain(NAMES, "egress") if '"allow 1"' in line] == [
        f'{about} ct original ip daddr @allow_1_v4 counter goto admit comment "allow 1"',
        f'{about} ct original ip6 daddr @allow_1_v6 counter goto admit comment "allow 1"',
    ]


def test_a_network_that_is_denied_is_denied_in_each_spelling() -> None:
    four, six = (line for line in chain(EXCEPTIONS, "egress") if '"deny 1"' in line)
    assert four == 'meta l4proto { 1, 6, 17 } ct original ip daddr { 10.0.0.0/8 } counter goto deny comment "deny 1"'
    assert "64:ff9b::a00:0/104" in six
    assert "meta l4proto { 6, 17, 58 }" in six


def test_closed_networks_are_closed_before_and_after_another_program_translated_them() -> None:
    text = "\n".join(line for line in chain(RULES, "egress") if "closed network" in line)
    for network in CLOSED_NETWORKS:
        assert len(re.findall(rf"[{{,] {re.escape(str(network))}[ ,]", text)) == 2


@pytest.mark.parametrize(("policy", "target"), [("open", "admit"), ("closed", "deny")])
def test_the_default(policy: str, target: str) -> None:
    rules = replace(RULES, policy=egress_cases.policy(policy))
    assert chain(rules, "egress")[-1] == f'counter goto {target} comment "default"'


def test_the_relays_machine_answers_ping_and_what_a_rule_says() -> None:
    here = chain(EXCEPTIONS, "here")
    assert here[:2] == ["icmp type 8 accept", "icmpv6 type 128 accept"]
    assert (
        'meta nfproto ipv4 meta l4proto { 6 } ct original proto-dst { 8080 } counter goto admit_here comment "allow 3"'
        in here
    )
    assert here[-1] == 'counter goto deny comment "relay machine"'
    assert "admit_here" not in "".join(chain(NAMES, "here"))


def test_what_is_allowed_leaves_by_the_uplink_and_is_not_too_much() -> None:
    rules = replace(RULES, max_new_flows=10, max_flows=20, uplinks=((4, "eth0"),))
    assert chain(rules, "limits") == [
        'limit rate over 10/second burst 10 packets counter goto refuse comment "too many new flows"',
        'ct count over 20 counter goto refuse comment "too many flows"',
    ]
    assert chain(rules, "admit") == ["jump limits", 'oifname "eth0" meta nfproto ipv4 accept', "counter drop"]


def test_what_is_denied_is_noted_and_told_at_once() -> None:
    deny = chain(RULES, "deny")
    assert deny[0].endswith("update @denied_v4 { ct original ip daddr . meta l4proto . th dport counter }")
    assert deny[-1] == "goto refuse"
    assert chain(RULES, "refuse") == ["meta l4proto 6 reject with tcp reset", "reject with icmpx type admin-prohibited"]
    assert render_nft(RULES).count(f"size {MAX_DENIED}; flags dynamic,timeout; timeout 300s;") == 4


def test_errors_are_about_the_enclaves_own_flows() -> None:
    errors = chain(RULES, "errors")
    assert errors[:2] == [
        "icmp type { 3, 11, 12 } ct original ip saddr 10.73.0.0/24 accept",
        "icmp type { 3, 11, 12 } ct reply ip saddr 10.73.0.0/24 accept",
    ]
    assert errors[-1] == 'counter drop comment "errors about flows of others"'


def test_closed_rules_have_no_sets() -> None:
    assert "\tset " not in render_nft(replace(NAMES, is_open=False))


PINNED = (
    Element(WWW, ip_address("203.0.113.10"), 55.5, "www.lab.test"),
    Element(WWW, ip_address("2001:db8::10"), 1e-9),
    Element(EXAMPLE, ip_address("203.0.113.10"), 0),
)


def test_rules_come_into_force_with_what_is_pinned() -> None:
    lines = [line.strip() for line in render_nft(NAMES, PINNED).splitlines()]
    assert [line for line in lines if line.startswith("elements")] == [
        'elements = { 203.0.113.10 timeout 55500ms comment "pinned www.lab.test" }',
        "elements = { 2001:db8::10 timeout 1ms }",
    ]


def test_an_element_is_renewed_in_one_transaction_whether_there_is_one_or_not() -> None:
    four = "element inet wgvsock-relay allow_1_v4 { 203.0.113.10"
    assert render_pins("wgvsock-relay", PINNED[:1]).splitlines() == [
        f"add {four} timeout 1s }}",
        f"delete {four} }}",
        f'add {four} timeout 55500ms comment "pinned www.lab.test" }}',
    ]
    assert render_pins("wgvsock-relay", PINNED[2:]).splitlines() == [
        "add element inet wgvsock-relay allow_2_v4 { 203.0.113.10 timeout 1s }",
        "delete element inet wgvsock-relay allow_2_v4 { 203.0.113.10 }",
    ]


def test_a_rule_that_denies_the_relays_machine_wins_there_and_is_about_nothing_else() -> None:
    settings = PolicySettings(allow=(RuleSettings(relay=True),), deny=(RuleSettings(relay=True, ports=(22,)),))
    rules = replace(RULES, policy=settings.policy())
    assert keys(rules, "here") == ["protocol", "deny 1", "closed network", "allow 1", "relay machine"]
    assert "deny 1" not in keys(rules, "egress")
