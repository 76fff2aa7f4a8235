"""What the enclave may reach, as iptables chains. The kernel's own view is in tests/e2e/test_egress_policy.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests import egress_cases
from tests.unit.packet_filter import RULES
from wgvsock.system.filter.iptables_egress import HELPERS, asks_resolver, icmp, render_helpers
from wgvsock.system.filter.rules import Ruleset

EXCEPTIONS = replace(RULES, policy=egress_cases.policy("exceptions"))


def helpers(rules: Ruleset, version: int) -> dict[str, list[str]]:
    return render_helpers(rules, version, lambda suffix: suffix)


def keys(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(line.split('--comment "')[1].split('"')[0] for line in lines if "--comment" in line))


def test_every_helper_is_there_and_closed_ones_are_empty() -> None:
    assert tuple(helpers(RULES, 4)) == HELPERS
    assert helpers(replace(RULES, is_open=False), 4) == {suffix: [] for suffix in HELPERS}


def test_the_order_is_that_of_a_verdict() -> None:
    four = helpers(EXCEPTIONS, 4)
    assert keys(four["EGR"]) == ["resolver", "deny 1", "allow 1", "closed network", "default", "protocol"]
    assert keys(four["HERE"]) == ["deny 1", "closed network", "allow 3", "relay machine"]
    assert keys(helpers(EXCEPTIONS, 6)["EGR"]) == [
        "deny 1",
        "deny 2",
        "allow 2",
        "closed network",
        "default",
        "protocol",
    ]


def test_a_rule_becomes_a_line_for_each_network_protocol_and_port() -> None:
    rules = replace(RULES, policy=egress_cases.policy("networks"))
    assert [line for line in helpers(rules, 4)["EGR"] if '"allow 1"' in line] == [
        f'-p tcp -m conntrack --ctorigdst 10.20.0.0/16 --ctorigdstport {port} -m comment --comment "allow 1" -g ADM'
        for port in (80, 443)
    ]
    (ping,) = (line for line in helpers(rules, 4)["EGR"] if '"allow 2"' in line)
    assert ping.startswith("-p icmp -m icmp --icmp-type 8 -m conntrack --ctorigdst 10.20.0.0/16 ")
    denied = [line for line in helpers(EXCEPTIONS, 6)["EGR"] if '"deny 1"' in line]
    assert any("--ctorigdst 64:ff9b::a00:0/104 " in line for line in denied)


@pytest.mark.parametrize(("policy", "target"), [("open", "ADM"), ("closed", "DENY")])
def test_the_default_is_for_three_protocols(policy: str, target: str) -> None:
    lines = helpers(replace(RULES, policy=egress_cases.policy(policy)), 4)["EGR"]
    assert [line for line in lines if '"default"' in line] == [
        f'{match} -m comment --comment "default" -g {target}'
        for match in ("-p tcp", "-p udp", "-p icmp -m icmp --icmp-type 8")
    ]
    assert lines[-1] == '-m comment --comment "protocol" -g DENY'


def test_the_relays_machine() -> None:
    six = helpers(EXCEPTIONS, 6)["HERE"]
    assert six[0] == "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"
    assert '-p tcp -m conntrack --ctorigdstport 8080 -m comment --comment "allow 3" -g ADMH' in six
    denied = replace(
        RULES, policy=replace(EXCEPTIONS.policy, deny=(replace(EXCEPTIONS.policy.allow[2], allows=False),))
    )
    assert any('"deny 3"' in line and line.endswith("-g DENY") for line in helpers(denied, 4)["HERE"])


def test_what_is_allowed_leaves_by_the_uplink_and_is_not_too_much() -> None:
    rules = replace(RULES, max_new_flows=10, max_flows=20, uplinks=((4, "eth0"),))
    assert helpers(rules, 4)["ADM"] == ["-j LIM", "-o eth0 -j ACCEPT", "-j DROP"]
    assert helpers(rules, 6)["ADM"] == ["-j LIM", "-j DROP"]
    rate, most = helpers(rules, 4)["LIM"]
    assert "--hashlimit-above 10/sec --hashlimit-burst 10 " in rate
    assert "--connlimit-above 20 --connlimit-mask 0 " in most
    # A table of the whole namespace, which keeps its rate as long as there is one of this name.
    tables = {
        line.split("--hashlimit-name ")[1].split()[0]
        for changed in (rules, replace(rules, owner="other"), replace(rules, max_new_flows=11))
        for line in helpers(changed, 4)["LIM"][:1]
    }
    assert len(tables) == 3


def test_errors_are_about_the_enclaves_own_flows() -> None:
    errors = helpers(RULES, 4)["ERR"]
    assert errors[0] == "-p icmp -m icmp --icmp-type 3 -m conntrack --ctorigsrc 10.73.0.0/24 -j ACCEPT"
    assert errors[1] == "-p icmp -m icmp --icmp-type 3 -m conntrack --ctreplsrc 10.73.0.0/24 -j ACCEPT"
    assert errors[-1] == '-m comment --comment "errors about flows of others" -j DROP'


def test_names_of_what_iptables_knows() -> None:
    assert (icmp(4), icmp(6)) == ("icmp", "ipv6-icmp")
    assert list(asks_resolver(ip_address("fd00::1"))) == [
        "-p tcp -m conntrack --ctorigdst fd00::1 --ctorigdstport 53",
        "-p udp -m conntrack --ctorigdst fd00::1 --ctorigdstport 53",
    ]
