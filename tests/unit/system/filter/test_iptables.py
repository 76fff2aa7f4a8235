"""A ruleset as iptables chains. The kernel's own view of them is in tests/e2e."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.packet_filter import RULES as EVERYTHING
from wgvsock.system.filter.iptables import JUMPS, chain_name, own_chains, render_iptables
from wgvsock.system.filter.iptables_egress import HELPERS
from wgvsock.system.filter.rules import PublishedPort

UNTRANSLATED = "-i wg0 -m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT,DNAT"

RESOLVER = "-m conntrack --ctorigdst 169.254.20.10 --ctorigdstport 53"

RULES = replace(EVERYTHING, confined=frozenset({4}))


def test_the_same_rules_family_by_family() -> None:
    local = "-m addrtype --dst-type LOCAL"
    helpers = tuple(chain_name("relay", suffix) for suffix in HELPERS)
    lines = render_iptables(RULES, 4).splitlines()
    assert [line for line in lines if not line.startswith(tuple(f"-A {name} " for name in helpers))] == [
        "*nat",
        ":WGVSOCK-relay-PRE - [0:0]",
        ":WGVSOCK-relay-POST - [0:0]",
        f"-A WGVSOCK-relay-PRE -i eth0 -p tcp {local} --dport 443 -j DNAT --to-destination 10.73.0.2:8443",
        "-A WGVSOCK-relay-POST -s 10.73.0.0/24 -o eth0 -j MASQUERADE",
        "COMMIT",
        "*mangle",
        ":WGVSOCK-relay-MSS - [0:0]",
        ":WGVSOCK-relay-TEST - [0:0]",
        ":WGVSOCK-relay-MARK - [0:0]",
        "-A WGVSOCK-relay-MSS -i wg0 -j MARK --set-xmark 0x0/0x2000",
        "-A WGVSOCK-relay-MSS -i wg0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-A WGVSOCK-relay-MSS -o wg0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-A WGVSOCK-relay-TEST -s 10.73.0.0/24 -d 192.0.2.1 -p tcp --dport 9 -j DROP",
        "-A WGVSOCK-relay-MARK -i wg0 -j MARK --set-xmark 0x2000/0x2000",
        "COMMIT",
        "*filter",
        ":WGVSOCK-relay-IN - [0:0]",
        ":WGVSOCK-relay-OUT - [0:0]",
        ":WGVSOCK-relay-FWD - [0:0]",
        ":WGVSOCK-relay-LAST - [0:0]",
        *(f":{name} - [0:0]" for name in helpers),
        "-A WGVSOCK-relay-IN -i lo -j RETURN",
        "-A WGVSOCK-relay-IN -s 10.73.0.0/24 ! -i wg0 -j DROP",
        "-A WGVSOCK-relay-IN -i eth0 -p tcp -m conntrack --ctstate INVALID -j DROP",
        "-A WGVSOCK-relay-IN -i wg0 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A WGVSOCK-relay-IN -i wg0 -p icmp -m conntrack --ctstate RELATED -g WGVSOCK-relay-ERR",
        f"-A WGVSOCK-relay-IN -i wg0 -p tcp {RESOLVER} -g WGVSOCK-relay-ADMH",
        f"-A WGVSOCK-relay-IN -i wg0 -p udp {RESOLVER} -g WGVSOCK-relay-ADMH",
        "-A WGVSOCK-relay-IN -i wg0 -g WGVSOCK-relay-HERE",
        "-A WGVSOCK-relay-IN -i wg0 -j REJECT --reject-with icmp-admin-prohibited",
        "-A WGVSOCK-relay-OUT -o lo -j RETURN",
        "-A WGVSOCK-relay-OUT -d 10.73.0.0/24 ! -o wg0 -j DROP",
        "-A WGVSOCK-relay-FWD -d 10.73.0.0/24 ! -o wg0 -j DROP",
        "-A WGVSOCK-relay-FWD -s 10.73.0.0/24 ! -i wg0 -j DROP",
        "-A WGVSOCK-relay-FWD -i wg0 -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
        f"-A WGVSOCK-relay-FWD {UNTRANSLATED} -j DROP",
        "-A WGVSOCK-relay-FWD -i wg0 -o eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A WGVSOCK-relay-FWD -i wg0 -o eth0 -p icmp -m conntrack --ctstate RELATED -g WGVSOCK-relay-ERR",
        "-A WGVSOCK-relay-FWD -i wg0 -s 10.73.0.0/24 -d 192.0.2.1 -p tcp --dport 9 -j ACCEPT",
        "-A WGVSOCK-relay-FWD -i wg0 -g WGVSOCK-relay-EGR",
        "-A WGVSOCK-relay-FWD -i eth0 -o wg0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A WGVSOCK-relay-FWD -i eth0 -o wg0 -m conntrack --ctstate DNAT -j ACCEPT",
        "-A WGVSOCK-relay-FWD -i wg0 -j DROP",
        "-A WGVSOCK-relay-FWD -o wg0 -j DROP",
        '-A WGVSOCK-relay-LAST -m comment --comment "before ipv4_forwarding eth0 0/0"',
        "-A WGVSOCK-relay-LAST -j DROP",
        "COMMIT",
    ]
    six = render_iptables(RULES, 6)
    assert "10.73" not in six
    assert "-j DROP" not in [line for line in six.splitlines() if "LAST" in line]  # IPv6 was forwarded before
    assert "--reject-with icmp6-adm-prohibited" in six
    assert "-j DNAT --to-destination [fd73::2]:53" in six
    assert "-s fd73::/64 -o eth1 -j MASQUERADE" in six


def test_closed_rules_translate_and_forward_nothing_and_bind_all_the_same() -> None:
    for version, network in ((4, "10.73.0.0/24"), (6, "fd73::/64")):
        closed = render_iptables(replace(RULES, is_open=False), version)
        assert "MASQUERADE" not in closed
        assert "-j DNAT" not in closed
        assert "ACCEPT" not in closed
        for line in (f"FWD -d {network} ! -o wg0", f"FWD -s {network} ! -i wg0", f"OUT -d {network} ! -o wg0"):
            assert f"-A WGVSOCK-relay-{line} -j DROP" in closed


def test_without_masquerade() -> None:
    assert "MASQUERADE" not in render_iptables(replace(RULES, masquerade=False), 4)


def test_a_flow_that_is_known_and_not_translated_does_not_leave() -> None:
    """It began while another program had removed the rules."""
    for rules in (RULES, replace(RULES, is_open=False)):
        for version in (4, 6):
            assert f"-A WGVSOCK-relay-FWD {UNTRANSLATED} -j DROP" in render_iptables(rules, version)
    assert UNTRANSLATED not in render_iptables(replace(RULES, masquerade=False), 4)


def test_a_family_without_a_way_out_leads_nowhere() -> None:
    four = render_iptables(replace(RULES, uplinks=()), 4)
    assert "eth" not in four.replace("ipv4_forwarding eth0", "")
    assert "MASQUERADE" not in four
    assert "-j DNAT" not in four


@pytest.mark.parametrize("owner", ["r", "relay", "a-relay-of-some-length", "x" * 64])
def test_a_chain_s_name_fits_and_is_the_relay_s_own(owner: str) -> None:
    names = set(own_chains(owner))
    assert len(names) == len(JUMPS) + len(HELPERS)
    assert all(name.startswith("WGVSOCK-") and len(name) <= 28 for name in names)
    assert names.isdisjoint(own_chains(owner + "y"))


def test_what_comes_from_a_withdrawn_port_is_masqueraded_first_and_with_another_port() -> None:
    withdrawn = (
        PublishedPort("udp", 53, ip_address("10.73.0.2"), 53),
        PublishedPort("tcp", 80, ip_address("10.73.0.2"), 8080),
    )
    rules = replace(RULES, withdrawn=withdrawn)
    lines = [line for line in render_iptables(rules, 4).splitlines() if "MASQUERADE" in line]
    assert lines[0].endswith("-s 10.73.0.2 -o eth0 -p udp --sport 53 -j MASQUERADE --to-ports 32768-65535")
    assert len(lines) == 2
    assert "--to-ports" not in render_iptables(rules, 6)
    assert "MASQUERADE" not in render_iptables(replace(rules, is_open=False), 4)


def test_translation_is_there_before_the_way_opens_and_after_it_closes() -> None:
    def tables(is_open: bool) -> list[str]:
        lines = render_iptables(replace(RULES, is_open=is_open), 4).splitlines()
        return [line for line in lines if line.startswith("*")]

    assert tables(is_open=True) == ["*nat", "*mangle", "*filter"]
    assert tables(is_open=False) == ["*filter", "*mangle", "*nat"]
