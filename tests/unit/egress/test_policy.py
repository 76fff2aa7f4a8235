"""The rules of a policy, the subject of each, and what a name may stand for."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tests import egress_cases
from tests.egress_cases import SITE
from wgvsock.egress.policy import Packet, Policy
from wgvsock.egress.settings import PolicySettings, RuleSettings


def test_a_rule_reads_like_a_sentence() -> None:
    names = egress_cases.policy("names")
    assert [str(rule) for rule in (*names.allow, *names.deny)] == [
        "allow tcp 443 to www.lab.test",
        "allow any to *.example.com",
        "deny any to admin.example.com",
        "deny any to 203.0.113.64/26",
    ]
    assert [rule.key for rule in (*names.allow, *names.deny)] == ["allow 1", "allow 2", "deny 1", "deny 2"]
    (relay,) = PolicySettings(allow=(RuleSettings(relay=True, ports=(80, 8080)),)).policy().allow
    assert str(relay) == "allow tcp 80,8080 to the relay's machine"


def test_what_denies_an_ipv4_network_denies_each_spelling_of_it_and_what_allows_it_allows_one() -> None:
    policy = PolicySettings(
        allow=(RuleSettings(network=ip_network("10.0.0.0/8")),), deny=(RuleSettings(network=ip_network("10.0.0.0/8")),)
    ).policy()
    spelled = ip_address("64:ff9b::a00:1")
    assert policy.deny[0].covers(spelled)
    assert not policy.allow[0].covers(spelled)


def test_kinds_of_packets() -> None:
    four, six = ip_address("203.0.113.1"), ip_address("2001:db8::1")
    assert Packet(four, 6, 80).kind == "tcp"
    assert Packet(six, 17, 80).kind == "udp"
    assert (Packet(four, 1, 8).kind, Packet(six, 58, 128).kind) == ("icmp", "icmp")
    # A reply, an error, the other family's protocol, and one without ports.
    assert [Packet(four, 1, 0).kind, Packet(four, 1, 3).kind, Packet(four, 58, 128).kind, Packet(six, 47).kind] == [
        None
    ] * 4


def test_which_names_may_be_asked_for() -> None:
    names = egress_cases.policy("names")
    assert names.has_names
    assert [rule.position for rule in names.name_rules] == [1, 2]
    for name in ("www.lab.test", "a.example.com"):
        assert names.allows_name(name)
        assert names.pins(name)
    for name in ("lab.test", "admin.example.com", "example.com", "4.3.2.1.in-addr.arpa"):
        assert not names.allows_name(name)
        assert not names.pins(name)


def test_the_rules_of_a_name() -> None:
    names = PolicySettings(
        "deny",
        (RuleSettings(name="www.lab.test"), RuleSettings(name="*.lab.test"), RuleSettings(name="*")),
        (RuleSettings(name="admin.lab.test"),),
    ).policy()
    assert [rule.position for rule in names.rules_of("www.lab.test")] == [1, 2, 3]
    assert [rule.position for rule in names.rules_of("lab.test")] == [3]
    assert names.rules_of("admin.lab.test") == []


def test_a_policy_that_is_about_no_names_leaves_them_alone() -> None:
    for policy in (Policy(), egress_cases.policy("networks")):
        assert policy.allows_name("anything.test")
        assert not policy.pins("anything.test")
    by_default = PolicySettings(allow=(RuleSettings(name="a.test"),)).policy()
    assert by_default.allows_name("b.test")


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "127.0.0.1", "::1"),
        *("198.18.73.3", "198.18.73.2", "64:ff9b::c612:4903", "fddc:7f99:d74c::3"),
        *("10.0.1.5", "2001:db8:1::5", "64:ff9b::a00:105"),
    ],
)
def test_no_name_stands_for_an_address_that_is_ours_or_closed(address: str) -> None:
    for name in ("open", "names"):
        assert not egress_cases.policy(name).may_tell(ip_address(address), SITE)


def test_unless_a_rule_is_about_it() -> None:
    exceptions = egress_cases.policy("exceptions")
    assert exceptions.may_tell(ip_address("169.254.169.123"), SITE)
    assert not exceptions.may_tell(ip_address("169.254.169.254"), SITE)
    assert exceptions.may_tell(ip_address("10.0.1.5"), SITE)  # relay = true
    assert exceptions.may_tell(ip_address("203.0.113.1"), SITE)
