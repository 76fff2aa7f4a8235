"""Rules without effect are found, and no others."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import egress_cases
from wgvsock.egress.names import NamePattern, Pins
from wgvsock.egress.policy import Packet, Policy, Site
from wgvsock.egress.review import covers, review
from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.egress.verdict import judge
from wgvsock.settings import parse


def found(rules: str) -> dict[str, str]:
    """Return why each rule has no effect, by its key."""
    return {finding.rule.key: finding.why for finding in review(parse(PolicySettings, rules).policy())}


@pytest.mark.parametrize("name", egress_cases.POLICIES)
def test_policies_of_which_every_rule_is_needed(name: str) -> None:
    assert found(egress_cases.POLICIES[name]) == {}


@pytest.mark.parametrize(
    ("allow", "shadowed"),
    [
        ('{network = "10.0.0.0/8"}, {network = "10.1.0.0/16"}', True),
        ('{network = "10.0.0.0/8"}, {network = "10.0.0.0/8"}', True),
        ('{network = "10.1.0.0/16"}, {network = "10.0.0.0/8"}', False),  # the first has its own count
        ('{network = "10.0.0.0/8", ports = [443]}, {network = "10.1.0.0/16"}', False),
        ('{network = "10.0.0.0/8", ports = [443, 80]}, {network = "10.1.0.0/16", ports = [80]}', True),
        ('{network = "10.0.0.0/8"}, {network = "10.1.0.0/16", protocol = "udp"}', False),
        ('{network = "10.0.0.0/8", protocol = "any"}, {network = "10.1.0.0/16", protocol = "icmp"}', True),
        (
            '{network = "10.0.0.0/8", ports = [1], protocol = "any"}, {network = "10.1.0.0/16", protocol = "icmp"}',
            False,
        ),
        ('{network = "0.0.0.0/0"}, {network = "169.254.169.123/32"}', False),  # which a wide one does not open
        ('{network = "169.254.0.0/16"}, {network = "169.254.169.123/32"}', True),
        ('{network = "0.0.0.0/0"}, {network = "2001:db8::/32"}', False),
        ('{name = "*.lab.test"}, {name = "www.lab.test"}', True),
        ('{name = "*.lab.test"}, {name = "*.www.lab.test"}', True),
        ('{name = "*.lab.test"}, {name = "lab.test"}', False),
        ('{name = "*.lab.test"}, {name = "wwwlab.test"}', False),
        ('{name = "*.lab.test"}, {name = "*"}', False),
        ('{name = "*"}, {name = "www.lab.test", ports = [443]}', True),
        ('{name = "www.lab.test"}, {name = "www.lab.test", protocol = "udp"}', False),
        ('{name = "*"}, {network = "10.0.0.0/8"}', False),
        ('{network = "10.0.0.0/8"}, {name = "*"}', False),
        ("{relay = true}, {relay = true, ports = [80]}", True),
        ('{relay = true}, {network = "10.0.0.0/8"}', False),
        ('{network = "0.0.0.0/0"}, {relay = true}', False),
    ],
)
def test_a_rule_behind_one_that_means_all_of_it(allow: str, shadowed: bool) -> None:
    why = found(f'default = "deny"\nallow = [{allow}]')
    assert list(why) == (["allow 2"] if shadowed else [])
    assert all("allow 1" in reason for reason in why.values())


@pytest.mark.parametrize(
    ("allow", "deny", "useless"),
    [
        ('{network = "10.1.0.0/16"}', '{network = "10.0.0.0/8"}', True),
        ('{network = "10.0.0.0/8"}', '{network = "10.1.0.0/16"}', False),
        ('{network = "10.1.0.0/16"}', '{network = "10.0.0.0/8", protocol = "udp"}', False),
        ('{network = "10.1.0.0/16"}', '{network = "10.0.0.0/8", ports = [25]}', False),
        ('{network = "10.1.0.0/16", ports = [25]}', '{network = "10.0.0.0/8", ports = [25]}', True),
        ('{network = "64:ff9b::a01:0/112"}', '{network = "10.0.0.0/8"}', True),  # another way to write 10.1.0.0/16
        ('{name = "www.lab.test"}', '{name = "*.lab.test"}', True),
        ('{name = "www.lab.test", ports = [443]}', '{name = "www.lab.test", protocol = "udp"}', True),  # never pinned
        ('{name = "*.lab.test"}', '{name = "www.lab.test"}', False),
        ('{name = "www.lab.test"}', '{network = "0.0.0.0/0"}', False),
        ('{network = "10.0.0.0/8"}', '{name = "*"}', False),
        ("{relay = true, ports = [80]}", "{relay = true}", True),
        ("{relay = true}", '{network = "0.0.0.0/0"}', False),
        ('{network = "10.0.0.0/8"}', "{relay = true}", False),
    ],
)
def test_a_rule_that_another_one_denies_wholly(allow: str, deny: str, useless: bool) -> None:
    why = found(f'default = "deny"\nallow = [{allow}]\ndeny = [{deny}]')
    assert list(why) == (["allow 1"] if useless else [])
    assert all("deny 1" in reason for reason in why.values())


def test_a_rule_that_denies_what_one_before_it_denies() -> None:
    assert list(found('deny = [{network = "10.0.0.0/8"}, {network = "10.1.0.0/16"}]')) == ["deny 2"]
    assert found('deny = [{network = "10.0.0.0/8", ports = [1]}, {network = "10.1.0.0/16"}]') == {}


def test_what_the_default_allows_anyway() -> None:
    rules = (
        '{network = "10.0.0.0/8"}, {name = "www.lab.test"}, {network = "169.254.169.123/32"}, '
        '{relay = true}, {network = "0.0.0.0/0"}'
    )
    why = found(f"allow = [{rules}]")
    assert list(why) == ["allow 1", "allow 2", "allow 5"]
    assert all('default = "allow"' in reason for reason in why.values())


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1/32", "::1/128", "::ffff:10.0.0.0/104", "0.0.0.0/8"])
@pytest.mark.parametrize("kind", ["allow", "deny"])
def test_what_no_enclave_sends_through_its_tunnel(network: str, kind: str) -> None:
    assert list(found(f'default = "deny"\n{kind} = [{{network = "{network}"}}]')) == [f"{kind} 1"]


def test_advice_says_where_the_rule_stands() -> None:
    policy = parse(PolicySettings, 'deny = [{network = "10.0.0.0/8"}, {network = "10.0.0.0/8", ports = [1]}]').policy()
    (finding,) = review(policy)
    advice = finding.advice(("enclaves", 2, "egress"))
    assert advice.key == ("enclaves", 2, "egress", "deny", 1)
    assert (advice.what, advice.why) == ('the rule "deny tcp/udp 1 to 10.0.0.0/8" has no effect', finding.why)


_NETWORKS = st.sampled_from(
    ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "169.254.0.0/16", "169.254.169.254/32", "::/0",
     "64:ff9b::a00:0/104"]
)  # fmt: skip
_NAMES = st.sampled_from(["*", "*.lab.test", "www.lab.test", "*.www.lab.test", "lab.test"])
_TARGETS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict, network=_NETWORKS), st.builds(dict, name=_NAMES), st.builds(dict, relay=st.just(True))
)


@st.composite
def rule_texts(draw: st.DrawFn) -> str:
    fields = dict(draw(_TARGETS))
    fields["protocol"] = draw(st.sampled_from(["tcp", "udp", "icmp", "any"]))
    if fields["protocol"] != "icmp":
        fields["ports"] = draw(st.sampled_from([[], [53], [53, 443]]))
    values = {True: "true"}
    return ", ".join(f"{key} = {values.get(value) if value is True else repr(value)}" for key, value in fields.items())


_ADDRESSES = [
    "10.1.1.1",
    "10.2.0.1",
    "203.0.113.1",
    "169.254.169.254",
    "169.254.1.1",
    "64:ff9b::a01:101",
    "2001:db8::1",
]
_PACKETS = [
    Packet(ip_address(address), protocol, port)
    for address in _ADDRESSES
    for protocol, port in ((6, 53), (6, 443), (6, 1), (17, 53), (17, 1), (1, 8) if "." in address else (58, 128))
]
_ASKED = ["www.lab.test", "lab.test", "a.www.lab.test", "other.test"]


@given(st.lists(rule_texts(), min_size=1, max_size=4), st.lists(rule_texts(), max_size=2))
def test_a_rule_that_is_said_to_do_nothing_can_be_taken_away(allow: list[str], deny: list[str]) -> None:
    """Then every packet and every name is judged as before."""
    text = 'default = "deny"\n' + "".join(
        f"[[{kind}]]\n" + one.replace(", ports", "\nports").replace(", protocol", "\nprotocol") + "\n"
        for kind, rules in (("allow", allow), ("deny", deny))
        for one in rules
    )
    policy = parse(PolicySettings, text).policy()
    for finding in review(policy):
        rest = Policy(
            policy.allows_by_default,
            tuple(each for each in policy.allow if each is not finding.rule),
            tuple(each for each in policy.deny if each is not finding.rule),
        )
        assert answers(rest, policy) == answers(policy, policy)


def answers(policy: Policy, asked: Policy) -> list[bool]:
    """Return what happens to some names and packets, where the names have the addresses that another policy allows."""
    site, pins = Site(relay=frozenset({ip_address("10.2.0.1")})), Pins()
    for name in _ASKED:
        if asked.pins(name):
            pins.pin(name, [(ip_address("203.0.113.1"), 60), (ip_address("10.1.1.1"), 60)], 0)
    names = [policy.pins(name) for name in _ASKED]
    return names + [judge(policy, pins, packet, site, 1).allowed for packet in _PACKETS]


def test_a_rule_covers_itself() -> None:
    rule = RuleSettings(name="www.lab.test").rule(1, allows=True)
    assert covers(rule, rule)
    assert rule.name == NamePattern("www.lab.test")
