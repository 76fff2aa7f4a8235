"""A ruleset as an nftables table. The kernel's own view of it is in tests/e2e."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from tests.unit.packet_filter import RULES
from wgvsock.system.filter.nft import render_nft, render_removal
from wgvsock.system.filter.rules import PublishedPort

BOUND_FORWARD = [
    'ip daddr 10.73.0.0/24 oifname != "wg0" counter drop',
    'ip6 daddr fd73::/64 oifname != "wg0" counter drop',
    'ip6 daddr fd73:1::1/128 oifname != "wg0" counter drop',
    'ip saddr 10.73.0.0/24 iifname != "wg0" counter drop',
    'ip6 saddr fd73::/64 iifname != "wg0" counter drop',
    'ip6 saddr fd73:1::1/128 iifname != "wg0" counter drop',
]
BOUND_INPUT = [
    'ip saddr 10.73.0.0/24 iifname != { "wg0", "lo" } counter drop',
    'ip6 saddr fd73::/64 iifname != { "wg0", "lo" } counter drop',
    'ip6 saddr fd73:1::1/128 iifname != { "wg0", "lo" } counter drop',
]
BOUND_OUTPUT = [
    'ip daddr 10.73.0.0/24 oifname != { "wg0", "lo" } counter drop',
    'ip6 daddr fd73::/64 oifname != { "wg0", "lo" } counter drop',
    'ip6 daddr fd73:1::1/128 oifname != { "wg0", "lo" } counter drop',
]
CONFINED = [
    "meta nfproto ipv4 iifgroup != 51820 oifgroup != 51820 counter drop",
    "meta nfproto ipv6 iifgroup != 51820 oifgroup != 51820 counter drop",
]


def chain(text: str, name: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index(f"chain {name} {{")
    return lines[start + 2 : lines.index("}", start)]


def test_the_relay_replaces_its_own_table_in_one_transaction() -> None:
    lines = render_nft(RULES).splitlines()
    assert lines[:3] == ["table inet wgvsock-relay", "delete table inet wgvsock-relay", "table inet wgvsock-relay {"]
    assert lines[-1] == "}"
    assert "wgvsock-second" in render_nft(replace(RULES, owner="second"))
    assert render_removal("second") == "table inet wgvsock-second\ndelete table inet wgvsock-second\n"


def test_what_was_before_is_written_where_it_lives_as_long_as_the_change() -> None:
    assert 'counter comment "before ipv4_forwarding eth0 0/0"' in render_nft(RULES)


def test_forwarding_is_for_what_belongs_to_the_tunnel() -> None:
    assert chain(render_nft(RULES), "forward") == [
        *BOUND_FORWARD,
        'iifname "wg0" ct state invalid,untracked counter drop',
        'iifname "wg0" oifname "eth0" meta nfproto ipv4 ct state established accept',
        'iifname "wg0" oifname "eth0" meta nfproto ipv4 meta l4proto 1 ct state related goto errors',
        'iifname "wg0" oifname "eth1" meta nfproto ipv6 ct state established accept',
        'iifname "wg0" oifname "eth1" meta nfproto ipv6 meta l4proto 58 ct state related goto errors',
        'iifname "wg0" ip saddr 10.73.0.0/24 ip daddr 192.0.2.1 tcp dport 9 accept',
        'iifname "wg0" ip6 saddr fd73::/64 ip6 daddr 2001:db8::1 tcp dport 9 accept',
        'iifname "wg0" goto egress',
        'iifname "eth0" oifname "wg0" meta nfproto ipv4 ct state established,related accept',
        'iifname "eth0" oifname "wg0" meta nfproto ipv4 ct status dnat accept',
        'iifname "eth1" oifname "wg0" meta nfproto ipv6 ct state established,related accept',
        'iifname "eth1" oifname "wg0" meta nfproto ipv6 ct status dnat accept',
        'iifname "wg0" counter drop',
        'oifname "wg0" counter drop',
        *CONFINED,
    ]


def test_a_family_that_was_forwarded_before_is_left_alone() -> None:
    assert chain(render_nft(replace(RULES, confined=frozenset())), "forward")[-1] == 'oifname "wg0" counter drop'
    only_six = chain(render_nft(replace(RULES, confined=frozenset({6}))), "forward")
    assert only_six[-2:] == ['oifname "wg0" counter drop', CONFINED[1]]


def test_the_enclave_s_prefixes_are_bound_to_the_tunnel_in_every_state() -> None:
    for rules in (RULES, replace(RULES, is_open=False)):
        text = render_nft(rules)
        assert chain(text, "forward")[: len(BOUND_FORWARD)] == BOUND_FORWARD
        assert chain(text, "input")[: len(BOUND_INPUT)] == BOUND_INPUT
        assert chain(text, "output") == BOUND_OUTPUT


def test_translation_both_ways() -> None:
    text = render_nft(RULES)
    assert chain(text, "prerouting") == [
        'iifname "eth0" fib daddr type local meta nfproto ipv4 tcp dport 443 dnat ip to 10.73.0.2:8443',
        'iifname "eth1" fib daddr type local meta nfproto ipv6 udp dport 53 dnat ip6 to [fd73::2]:53',
    ]
    assert chain(text, "postrouting") == [
        'oifname "eth0" ip saddr 10.73.0.0/24 masquerade',
        'oifname "eth1" ip6 saddr fd73::/64 masquerade',
    ]
    assert chain(text, "marking") == ['iifname "wg0" meta mark set meta mark | 0x2000']
    assert chain(text, "mangle") == [
        'iifname "wg0" meta mark set meta mark & 0xffffdfff',
        'iifname "wg0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu',
        'oifname "wg0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu',
    ]


def test_what_was_not_translated_does_not_leave() -> None:
    """Flows that began while another program had removed the rules. The relay's own address uses lo."""
    expected = [
        'oifname != { "wg0", "lo" } ip saddr 10.73.0.0/24 counter drop',
        'oifname != { "wg0", "lo" } ip6 saddr fd73::/64 counter drop',
    ]
    text = render_nft(RULES)
    assert chain(text, "untranslated") == expected
    assert "type filter hook postrouting priority srcnat + 10; policy accept;" in text  # behind the translation
    assert chain(render_nft(replace(RULES, is_open=False)), "untranslated") == expected
    assert chain(render_nft(replace(RULES, masquerade=False)), "untranslated") == []


def test_a_family_without_a_way_out_leads_nowhere() -> None:
    text = render_nft(replace(RULES, uplinks=((6, "eth1"),)))
    assert "eth0" not in text.replace("ipv4_forwarding eth0", "")
    assert chain(text, "postrouting") == ['oifname "eth1" ip6 saddr fd73::/64 masquerade']
    assert len(chain(text, "prerouting")) == 1


def test_what_is_for_the_relays_machine_is_judged_in_a_chain_of_its_own() -> None:
    invalid = [f'iifname "{name}" meta l4proto 6 ct state invalid counter drop' for name in ("eth0", "eth1")]
    rejected = 'iifname "wg0" counter reject with icmpx type admin-prohibited'
    resolver = "meta l4proto { 6, 17 } ct original proto-dst 53 ct original ip daddr 169.254.20.10"
    assert chain(render_nft(RULES), "input") == [
        *BOUND_INPUT,
        *invalid,
        'iifname "wg0" ct state established accept',
        'iifname "wg0" meta l4proto { 1, 58 } ct state related goto errors',
        f'iifname "wg0" {resolver} goto admit_here',
        'iifname "wg0" goto here',
        rejected,
    ]
    assert chain(render_nft(replace(RULES, is_open=False)), "input") == [*BOUND_INPUT, *invalid, rejected]


def test_questions_to_a_forwarder_on_the_relay_are_not_tracked() -> None:
    assert chain(render_nft(RULES), "untracked") == chain(render_nft(RULES), "untracked_answers") == []
    rules = replace(RULES, resolvers=(ip_address("10.73.0.1"),))
    text = render_nft(rules)
    assert chain(text, "untracked") == ['iifname "wg0" ip daddr 10.73.0.1 udp dport 53 notrack']
    assert chain(text, "untracked_answers") == ['oifname "wg0" ip saddr 10.73.0.1 udp sport 53 notrack']
    assert 'iifname "wg0" ip daddr 10.73.0.1 udp dport 53 accept' in chain(text, "input")
    assert "notrack" not in render_nft(replace(rules, is_open=False))


def test_closed_rules_translate_and_forward_nothing() -> None:
    text = render_nft(replace(RULES, is_open=False))
    assert "masquerade" not in text
    assert "dnat" not in text
    assert "accept" not in text.replace("policy accept", "")
    assert chain(text, "prerouting") == chain(text, "postrouting") == []  # the hooks stay, and with them known flows


def test_without_masquerade() -> None:
    assert "masquerade" not in render_nft(replace(RULES, masquerade=False))


WITHDRAWN = (
    PublishedPort("udp", 53, ip_address("10.73.0.2"), 53),
    PublishedPort("tcp", 80, ip_address("10.73.0.2"), 8080),
)


def test_what_comes_from_a_withdrawn_port_is_masqueraded_first_and_with_another_port() -> None:
    rules = replace(RULES, withdrawn=WITHDRAWN)
    lines = [line.strip() for line in render_nft(rules).splitlines() if "masquerade" in line]
    assert lines[0] == 'oifname "eth0" ip saddr 10.73.0.2 udp sport 53 masquerade to :32768-65535'
    assert not any("8080" in line for line in lines)
    assert "masquerade" not in render_nft(replace(rules, is_open=False))
    assert "masquerade" not in render_nft(replace(rules, masquerade=False))
