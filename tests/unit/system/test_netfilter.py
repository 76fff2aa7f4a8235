"""The rules as text, and how they are put in force and taken back. The kernel's own view of them is in tests/e2e."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from wgvsock.system import netfilter
from wgvsock.system.errors import NetfilterError
from wgvsock.system.journal import Undo
from wgvsock.system.netfilter import (
    Netfilter,
    PublishedPort,
    Ruleset,
    choose_backend,
    render_iptables,
    render_nft,
    run_tool,
)

RULES = Ruleset(
    tunnel="wg0",
    uplink="eth0",
    sources=(ip_network("10.73.0.0/24"), ip_network("fd73::/64")),
    published=(
        PublishedPort("tcp", 443, ip_address("10.73.0.2"), 8443),
        PublishedPort("udp", 53, ip_address("fd73::2"), 53),
    ),
    open_destinations=(ip_network("169.254.169.123/32"),),
    resolvers=(ip_address("169.254.20.10"),),
)


def chain(text: str, name: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index(f"chain {name} {{")
    return lines[start + 2 : lines.index("}", start)]


def test_nft_replaces_its_table_in_one_transaction() -> None:
    lines = render_nft(RULES).splitlines()
    assert lines[:3] == ["table inet wgvsock", "delete table inet wgvsock", "table inet wgvsock {"]
    assert lines[-1] == "}"


def test_nft_forwards_what_belongs_to_the_tunnel() -> None:
    assert chain(render_nft(RULES), "forward") == [
        'iifname "wg0" ct state invalid counter drop',
        'iifname "wg0" ip daddr 169.254.20.10 tcp dport 53 accept',
        'iifname "wg0" ip daddr 169.254.20.10 udp dport 53 accept',
        'iifname "wg0" oifname "eth0" ip daddr 169.254.169.123/32 accept',
        'iifname "wg0" ip daddr 169.254.0.0/16 counter reject with icmpx type admin-prohibited',
        'iifname "wg0" ip6 daddr fe80::/10 counter reject with icmpx type admin-prohibited',
        'iifname "wg0" ip6 daddr fd00:ec2::/32 counter reject with icmpx type admin-prohibited',
        'iifname "wg0" oifname "eth0" accept',
        'iifname "eth0" oifname "wg0" ct state established,related accept',
        'iifname "eth0" oifname "wg0" ct status dnat accept',
        'iifname "wg0" counter drop',
        'oifname "wg0" counter drop',
        "counter drop",
    ]


def test_a_machine_that_forwarded_before_goes_on_forwarding() -> None:
    assert chain(render_nft(replace(RULES, forwards_others=True)), "forward")[-1] == 'oifname "wg0" counter drop'
    assert "-A WGVSOCK-FORWARD -j DROP" not in render_iptables(replace(RULES, forwards_others=True), 4)
    assert "-A WGVSOCK-FORWARD -j DROP" in render_iptables(RULES, 4)


def test_nft_translates_both_ways() -> None:
    text = render_nft(RULES)
    assert chain(text, "prerouting") == [
        'iifname "eth0" fib daddr type local meta nfproto ipv4 tcp dport 443 dnat ip to 10.73.0.2:8443',
        'iifname "eth0" fib daddr type local meta nfproto ipv6 udp dport 53 dnat ip6 to [fd73::2]:53',
    ]
    assert chain(text, "postrouting") == [
        'oifname "eth0" ip saddr 10.73.0.0/24 masquerade',
        'oifname "eth0" ip6 saddr fd73::/64 masquerade',
    ]
    assert chain(text, "mss") == [
        'iifname "wg0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu',
        'oifname "wg0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu',
    ]


def test_the_enclave_reaches_resolvers_and_ping_on_the_relays_machine_and_nothing_else_there() -> None:
    invalid = 'iifname "eth0" meta l4proto 6 ct state invalid counter drop'
    rejected = 'iifname "wg0" counter reject with icmpx type admin-prohibited'
    assert chain(render_nft(RULES), "input") == [
        invalid,
        'iifname "wg0" ct state established,related accept',
        'iifname "wg0" meta l4proto { 1, 58 } accept',
        'iifname "wg0" ip daddr 169.254.20.10 tcp dport 53 accept',
        'iifname "wg0" ip daddr 169.254.20.10 udp dport 53 accept',
        rejected,
    ]
    assert chain(render_nft(replace(RULES, is_open=False)), "input") == [invalid, rejected]
    assert chain(render_nft(replace(RULES, open_relay=True)), "input") == [invalid]
    assert "-A WGVSOCK-INPUT -i wg0" not in render_iptables(replace(RULES, open_relay=True), 4)


def test_closed_rules_translate_and_forward_nothing() -> None:
    text = render_nft(replace(RULES, is_open=False))
    assert "masquerade" not in text
    assert "dnat" not in text
    assert "accept" not in text.replace("policy accept", "")
    assert chain(text, "prerouting") == chain(text, "postrouting") == []  # the hooks stay, and with them known flows
    for version in (4, 6):
        closed = render_iptables(replace(RULES, is_open=False), version)
        assert "MASQUERADE" not in closed
        assert "DNAT" not in closed
        assert "ACCEPT" not in closed


def test_without_masquerade() -> None:
    assert "masquerade" not in render_nft(replace(RULES, masquerade=False))
    assert "MASQUERADE" not in render_iptables(replace(RULES, masquerade=False), 4)


def test_iptables_has_the_same_rules_family_by_family() -> None:
    local = "-m addrtype --dst-type LOCAL"
    assert render_iptables(RULES, 4).splitlines() == [
        "*filter",
        ":WGVSOCK-INPUT - [0:0]",
        ":WGVSOCK-FORWARD - [0:0]",
        "-A WGVSOCK-INPUT -i eth0 -p tcp -m conntrack --ctstate INVALID -j DROP",
        "-A WGVSOCK-INPUT -i wg0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A WGVSOCK-INPUT -i wg0 -p icmp -j ACCEPT",
        "-A WGVSOCK-INPUT -i wg0 -d 169.254.20.10 -p tcp --dport 53 -j ACCEPT",
        "-A WGVSOCK-INPUT -i wg0 -d 169.254.20.10 -p udp --dport 53 -j ACCEPT",
        "-A WGVSOCK-INPUT -i wg0 -j REJECT --reject-with icmp-admin-prohibited",
        "-A WGVSOCK-FORWARD -i wg0 -m conntrack --ctstate INVALID -j DROP",
        "-A WGVSOCK-FORWARD -i wg0 -d 169.254.20.10 -p tcp --dport 53 -j ACCEPT",
        "-A WGVSOCK-FORWARD -i wg0 -d 169.254.20.10 -p udp --dport 53 -j ACCEPT",
        "-A WGVSOCK-FORWARD -i wg0 -o eth0 -d 169.254.169.123/32 -j ACCEPT",
        "-A WGVSOCK-FORWARD -i wg0 -d 169.254.0.0/16 -j REJECT --reject-with icmp-admin-prohibited",
        "-A WGVSOCK-FORWARD -i wg0 -o eth0 -j ACCEPT",
        "-A WGVSOCK-FORWARD -i eth0 -o wg0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A WGVSOCK-FORWARD -i eth0 -o wg0 -m conntrack --ctstate DNAT -j ACCEPT",
        "-A WGVSOCK-FORWARD -i wg0 -j DROP",
        "-A WGVSOCK-FORWARD -o wg0 -j DROP",
        "-A WGVSOCK-FORWARD -j DROP",
        "COMMIT",
        "*mangle",
        ":WGVSOCK-FORWARD - [0:0]",
        "-A WGVSOCK-FORWARD -i wg0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-A WGVSOCK-FORWARD -o wg0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "COMMIT",
        "*nat",
        ":WGVSOCK-PREROUTING - [0:0]",
        ":WGVSOCK-POSTROUTING - [0:0]",
        f"-A WGVSOCK-PREROUTING -i eth0 -p tcp {local} --dport 443 -j DNAT --to-destination 10.73.0.2:8443",
        "-A WGVSOCK-POSTROUTING -s 10.73.0.0/24 -o eth0 -j MASQUERADE",
        "COMMIT",
    ]
    six = render_iptables(RULES, 6)
    assert "10.73" not in six
    assert "--reject-with icmp6-adm-prohibited" in six
    assert "-j DNAT --to-destination [fd73::2]:53" in six
    assert "-s fd73::/64 -o eth0 -j MASQUERADE" in six


class Tools:
    """Records what is run; `status` decides how it ends."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, str]] = []
        self.failing: dict[str, tuple[int, str]] = {}

    async def __call__(self, command: Sequence[str], text: str) -> tuple[int, str]:
        line = " ".join(command)
        self.runs.append((line, text))
        return next((outcome for part, outcome in self.failing.items() if part in line), (0, ""))

    @property
    def lines(self) -> list[str]:
        return [line for line, _ in self.runs]


@pytest.fixture
def tools() -> Tools:
    return Tools()


def make(backend: str, tools: Tools) -> tuple[Netfilter, list[Undo]]:
    recorded: list[Undo] = []

    def record(undo: Undo) -> Undo:
        recorded.append(undo)
        return undo

    return Netfilter(backend, record, run=tools), recorded


def test_nft_is_one_call(tools: Tools) -> None:
    subject, recorded = make("nft", tools)
    asyncio.run(subject.apply(RULES))
    assert tools.runs == [("nft -f -", render_nft(RULES))]
    assert recorded == [Undo("netfilter", "nft")]
    asyncio.run(subject.check(RULES))
    assert tools.runs[-1] == ("nft -c -f -", render_nft(RULES))
    asyncio.run(subject.remove())
    assert tools.runs[-1] == ("nft -f -", "table inet wgvsock\ndelete table inet wgvsock\n")


def test_iptables_fills_its_chains_and_jumps_once(tools: Tools) -> None:
    subject, recorded = make("iptables", tools)
    asyncio.run(subject.apply(RULES))
    assert tools.runs[0] == ("iptables-restore -w --noflush", render_iptables(RULES, 4))
    assert ("ip6tables-restore -w --noflush", render_iptables(RULES, 6)) in tools.runs
    assert not [line for line in tools.lines if " -I " in line]  # the jumps are there already
    assert recorded == [Undo("netfilter", "iptables")]


def test_iptables_makes_missing_jumps(tools: Tools) -> None:
    tools.failing[" -C "] = (1, "no such rule")
    subject, _ = make("iptables", tools)
    asyncio.run(subject.apply(RULES))
    assert [line for line in tools.lines if line.startswith("iptables") and " -I " in line] == [
        "iptables -w -t filter -I INPUT -j WGVSOCK-INPUT",
        "iptables -w -t filter -I FORWARD -j WGVSOCK-FORWARD",
        "iptables -w -t mangle -I FORWARD -j WGVSOCK-FORWARD",
        "iptables -w -t nat -I PREROUTING -j WGVSOCK-PREROUTING",
        "iptables -w -t nat -I POSTROUTING -j WGVSOCK-POSTROUTING",
    ]


def test_iptables_is_checked_and_removed_chain_by_chain(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    asyncio.run(subject.check(RULES))
    assert tools.lines == ["iptables-restore -w --noflush --test", "ip6tables-restore -w --noflush --test"]
    tools.runs.clear()
    tools.failing["-X"] = (1, "there is none")
    asyncio.run(subject.remove())
    assert tools.lines[:3] == [
        "iptables -w -t filter -D INPUT -j WGVSOCK-INPUT",
        "iptables -w -t filter -F WGVSOCK-INPUT",
        "iptables -w -t filter -X WGVSOCK-INPUT",
    ]
    assert len(tools.lines) == 2 * 5 * 3


@pytest.mark.parametrize(
    ("complaint", "why"), [("\nError: no\nmore", "Error: no"), ("", "exit status 3")], ids=["message", "silent"]
)
def test_a_refusal_names_the_tool_s_first_line(tools: Tools, complaint: str, why: str) -> None:
    tools.failing["nft"] = (3, complaint)
    subject, _ = make("nft", tools)
    with pytest.raises(NetfilterError) as caught:
        asyncio.run(subject.apply(RULES))
    assert caught.value.why == why
    assert caught.value.exit_code == 7


def test_the_journal_takes_the_rules_back(monkeypatch: pytest.MonkeyPatch, tools: Tools) -> None:
    monkeypatch.setattr(netfilter, "run_tool", tools)

    async def undo() -> None:
        await netfilter.performers()["netfilter"]("nft", None)

    asyncio.run(undo())
    assert tools.lines == ["nft -f -"]


@pytest.mark.parametrize(
    ("installed", "nft_status", "backend"),
    [
        ({"nft"}, 0, "nft"),
        ({"nft", "iptables-restore", "ip6tables-restore"}, 0, "nft"),
        ({"nft", "iptables-restore", "ip6tables-restore"}, 1, "iptables"),
        ({"iptables-restore", "ip6tables-restore"}, 1, "iptables"),
        ({"nft"}, 1, "nft"),
    ],
)
def test_the_backend(tools: Tools, installed: set[str], nft_status: int, backend: str) -> None:
    tools.failing["nft list"] = (nft_status, "")
    assert asyncio.run(choose_backend(tools, lambda name: name if name in installed else None)) == backend


def test_neither_tool_is_there(tools: Tools) -> None:
    with pytest.raises(NetfilterError, match="neither nft nor iptables"):
        asyncio.run(choose_backend(tools, lambda _: None))


def test_a_tool_s_status_and_complaint() -> None:
    assert asyncio.run(run_tool(["sh", "-c", "cat >&2; exit 3"], "text")) == (3, "text")


def test_a_tool_that_is_not_installed() -> None:
    assert asyncio.run(run_tool(["wgvsock-no-such-tool"], "")) == (127, "wgvsock-no-such-tool is not installed")


def test_a_tool_that_does_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netfilter, "_RULES_TIMEOUT", 0.01)
    status, complaint = asyncio.run(run_tool(["sleep", "60"], ""))
    assert status == 124
    assert complaint == "sleep did not finish within 0.01 s"
