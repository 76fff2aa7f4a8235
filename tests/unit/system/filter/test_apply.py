"""How rules come into force, are inspected and undone, with doubles of the tools."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests import egress_cases
from wgvsock.addresses import IpAddress
from wgvsock.egress.policy import Policy
from wgvsock.runtime.journal import Undo
from wgvsock.system.errors import NetfilterError
from wgvsock.system.facts import Fact
from wgvsock.system.filter import apply
from wgvsock.system.filter.apply import KnownFacts, Netfilter, Ran, choose_backend, run_tool
from wgvsock.system.filter.egress_listing import Denied, Judged
from wgvsock.system.filter.iptables import JUMPS, chain_name, render_iptables
from wgvsock.system.filter.iptables_egress import HELPERS
from wgvsock.system.filter.nft import render_nft
from wgvsock.system.filter.nft_egress import MAX_DENIED, render_pins
from wgvsock.system.filter.rules import Element, HeldPin, PublishedPort, Ruleset

RULES = Ruleset(
    owner="relay",
    tunnel="wg0",
    uplinks=((4, "eth0"), (6, "eth0")),
    sources=(ip_network("10.73.0.0/24"), ip_network("fd73::/64")),
    published=(PublishedPort("tcp", 443, ip_address("10.73.0.2"), 8443),),
)
FOUR = replace(RULES, sources=RULES.sources[:1])
FACT = Fact("ipv4_forwarding", "eth0", "0/0")
THEIRS = Fact("ipv4_forwarding", "eth1", "1/1")


class Tools:
    """Records the commands. `status` decides how they end."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, str]] = []
        self.failing: dict[str, tuple[int, str]] = {}
        self.prints: dict[str, str] = {}

    async def __call__(self, command: Sequence[str], text: str) -> Ran:
        line = " ".join(command)
        self.runs.append((line, text))
        status, complaint = next((outcome for part, outcome in self.failing.items() if part in line), (0, ""))
        return Ran(status, complaint, next((text for part, text in self.prints.items() if part in line), ""))

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

    return Netfilter(backend, "relay", record, run=tools), recorded


def test_nft_is_one_call_and_a_look(tools: Tools) -> None:
    subject, recorded = make("nft", tools)
    asyncio.run(subject.apply(RULES))
    assert tools.runs == [("nft -f -", render_nft(RULES)), ("nft -s -t list table inet wgvsock-relay", "")]
    assert recorded == [Undo("netfilter", "nft relay")]
    asyncio.run(subject.check(RULES))
    assert tools.runs[-1] == ("nft -c -f -", render_nft(RULES))
    asyncio.run(subject.remove())
    assert tools.runs[-1] == ("nft -f -", "table inet wgvsock-relay\ndelete table inet wgvsock-relay\n")


def test_iptables_fills_its_chains_and_jumps_once(tools: Tools) -> None:
    subject, recorded = make("iptables", tools)
    tools.prints["-save"] = "".join(f"-A {j.hook} -j {chain_name('relay', j.suffix)}\n" for j in JUMPS)
    asyncio.run(subject.apply(RULES))
    assert tools.runs[0] == ("iptables-restore -w --noflush", render_iptables(RULES, 4))
    assert ("ip6tables-restore -w --noflush", render_iptables(RULES, 6)) in tools.runs
    # The jumps are there already. Few calls: each takes milliseconds, and what is to be closed is open meanwhile.
    saves = ["iptables-save", "ip6tables-save"]
    assert sorted(line for line in tools.lines if "-restore" not in line) == sorted(2 * saves)
    assert recorded == [Undo("netfilter", "iptables relay")]


def test_iptables_of_a_family_that_the_enclave_has_not_is_left_alone(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    asyncio.run(subject.apply(FOUR))
    assert not [line for line in tools.lines if line.startswith("ip6tables")]


def test_iptables_makes_missing_jumps(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    asyncio.run(subject.apply(FOUR))
    assert [line for line in tools.lines if {"-I", "-A"} & set(line.split())] == [
        "iptables -w -t filter -I INPUT -j WGVSOCK-relay-IN",
        "iptables -w -t filter -I OUTPUT -j WGVSOCK-relay-OUT",
        "iptables -w -t filter -I FORWARD -j WGVSOCK-relay-FWD",
        "iptables -w -t filter -A FORWARD -j WGVSOCK-relay-LAST",
        "iptables -w -t mangle -I FORWARD -j WGVSOCK-relay-MSS",
        "iptables -w -t mangle -I POSTROUTING -j WGVSOCK-relay-TEST",
        "iptables -w -t nat -I PREROUTING -j WGVSOCK-relay-PRE",
        "iptables -w -t nat -I POSTROUTING -j WGVSOCK-relay-POST",
        "iptables -w -t mangle -A PREROUTING -j WGVSOCK-relay-MARK",
    ]


def test_iptables_is_checked_and_removed_chain_by_chain(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    asyncio.run(subject.check(RULES))
    assert tools.lines == ["iptables-restore -w --noflush --test", "ip6tables-restore -w --noflush --test"]
    tools.runs.clear()
    tools.failing["-X"] = (1, "there is none")
    asyncio.run(subject.remove())
    assert tools.lines[:3] == [
        "iptables -w -t mangle -D PREROUTING -j WGVSOCK-relay-MARK",
        "iptables -w -t mangle -F WGVSOCK-relay-MARK",
        "iptables -w -t mangle -X WGVSOCK-relay-MARK",
    ]
    assert len(tools.lines) == 2 * (len(JUMPS) * 3 + len(HELPERS) * 2)


NFT_PROBE_CHAIN = """\
table inet wgvsock-relay {
	chain probe {
		type filter hook postrouting priority mangle; policy accept;
		ip saddr 10.73.0.0/24 ip daddr 192.0.2.1 tcp dport 9 counter packets 3 bytes 120 drop
		ip6 saddr fd73::/64 ip6 daddr 2001:db8::1 tcp dport 9 counter packets 4 bytes 240 drop
	}
}
"""
SAVED_PROBES = """\
*mangle
[9:9] -A POSTROUTING -j WGVSOCK-relay-TEST
[7:280] -A WGVSOCK-relay-TEST -s 10.73.0.0/24 -d 192.0.2.1/32 -p tcp -m tcp --dport 9 -j DROP
"""


def test_probes_that_came_through_are_counted(tools: Tools) -> None:
    tools.prints["list chain inet wgvsock-relay probe"] = NFT_PROBE_CHAIN
    assert asyncio.run(make("nft", tools)[0].probes_seen()) == {4: 3, 6: 4}
    tools.prints = {"ip6tables-save -c": "", "iptables-save -c -t mangle": SAVED_PROBES}
    assert asyncio.run(make("iptables", tools)[0].probes_seen()) == {4: 7}  # the other chain is gone: nothing is known


def test_whoever_drops_by_default_is_named(tools: Tools) -> None:
    tools.prints["nft list chains"] = """\
table inet wgvsock-other {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER {
	}
	chain INPUT {
		type filter hook input priority filter; policy drop;
	}
}
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
	}
}
"""
    assert asyncio.run(make("nft", tools)[0].who_drops()) == ("ip filter FORWARD",)


WRITTEN = {
    "nft": ("list table", render_nft(FOUR)),
    "iptables": (
        "-save",
        "".join(f"-A {jump.hook} -j {chain_name('relay', jump.suffix)}\n" for jump in JUMPS) + render_iptables(FOUR, 4),
    ),
}
"""How the rules are listed, by backend."""


@pytest.mark.parametrize(("backend", "beside"), [("nft", ""), ("iptables", "-A FORWARD -j DOCKER-USER\n")])
def test_rules_that_somebody_changed_are_not_intact(tools: Tools, backend: str, beside: str) -> None:
    listing, written = WRITTEN[backend]
    subject, _ = make(backend, tools)
    assert not asyncio.run(subject.is_intact())  # nothing was put in force yet
    tools.prints[listing] = beside + written
    asyncio.run(subject.apply(FOUR))
    tools.prints[listing] = written  # other programs' rules beside ours come and go
    assert asyncio.run(subject.is_intact())
    for changed in ("", written.replace("wg0", "wg1")):
        tools.prints[listing] = changed
        assert not asyncio.run(subject.is_intact())


@pytest.mark.parametrize(("backend", "gone"), [("nft", "masquerade"), ("iptables", "MASQUERADE")])
def test_rules_that_were_changed_before_they_could_be_listed_are_not_intact(
    tools: Tools, backend: str, gone: str
) -> None:
    """A program that flushes one chain after the other, while the relay restores the first one."""
    listing, written = WRITTEN[backend]
    subject, _ = make(backend, tools)
    tools.prints[listing] = "".join(line for line in written.splitlines(keepends=True) if gone not in line)
    asyncio.run(subject.apply(FOUR))
    assert not asyncio.run(subject.is_intact())
    tools.prints[listing] = written
    asyncio.run(subject.apply(FOUR))
    assert asyncio.run(subject.is_intact())


NAMES = replace(RULES, policy=egress_cases.policy("names"))


def pinned(
    policy: Policy, addresses: Collection[IpAddress] | None, forgotten: Collection[IpAddress] = ()
) -> list[Element]:
    return [Element(policy.name_rules[0], ip_address("203.0.113.10"), 30 if addresses is None else 60)]


def test_rules_come_with_what_is_pinned_and_change_with_it(tools: Tools) -> None:
    subject = Netfilter("nft", "relay", lambda undo: undo, tools, pinned)
    rule = NAMES.policy.name_rules[0]

    async def follow() -> None:
        await subject.pin([ip_address("203.0.113.10")])
        assert tools.runs == []  # nobody judges yet
        await subject.apply(replace(NAMES, is_open=False))
        await subject.pin([ip_address("203.0.113.10")])
        assert not any("add element" in text for _, text in tools.runs)
        await subject.apply(NAMES)
        assert "203.0.113.10 timeout 30000ms" in tools.runs[-2][1]
        await subject.pin([ip_address("203.0.113.10")])
        element = Element(rule, ip_address("203.0.113.10"), 60)
        assert tools.runs[-1] == ("nft -f -", render_pins("wgvsock-relay", [element]))

    asyncio.run(follow())


def test_what_is_pinned_goes_into_the_rules_that_stand(tools: Tools) -> None:
    """A refused change leaves the earlier rules, and their sets, in force."""
    seen: list[Policy] = []

    def note(
        policy: Policy, addresses: Collection[IpAddress] | None, forgotten: Collection[IpAddress] = ()
    ) -> list[Element]:
        if addresses is not None:
            seen.append(policy)
        return []

    subject = Netfilter("nft", "relay", lambda undo: undo, tools, note)

    async def follow() -> None:
        await subject.apply(NAMES)
        tools.failing["nft -f"] = (1, "Error")
        with pytest.raises(NetfilterError):
            await subject.apply(RULES)
        await subject.pin([ip_address("203.0.113.10")])

    asyncio.run(follow())
    assert seen == [NAMES.policy]


def test_what_is_pinned_or_denied_is_no_foreign_change(tools: Tools) -> None:
    """Elements expire by themselves, so a listing omits them."""
    subject, _ = make("nft", tools)
    asyncio.run(subject.apply(NAMES))
    assert tools.lines[-1] == "nft -s -t list table inet wgvsock-relay"


def test_iptables_keeps_no_names(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    for call in (subject.apply, subject.check):
        with pytest.raises(NetfilterError, match="names") as caught:
            asyncio.run(call(NAMES))
        assert "networks" in caught.value.fix
    assert tools.runs == []
    tools.failing["nft -c"] = (1, "Error: no sets")
    with pytest.raises(NetfilterError) as caught:
        asyncio.run(choose_backend(NAMES, tools, lambda name: name))
    assert caught.value.why == "nft: Error: no sets; iptables: iptables has no sets whose elements expire"


DENIED_SET = "\tset denied_v4 {\n\t\telements = { %s }\n\t}\n"


def test_what_nft_judged(tools: Tools) -> None:
    subject, _ = make("nft", tools)
    element = "203.0.113.1 . 6 . 443 counter packets 2 bytes 120 expires 297s"
    counted = 'counter packets 9 bytes 540 goto deny comment "default"'
    tools.prints["nft -n list table inet wgvsock-relay"] = DENIED_SET % element + counted
    first = asyncio.run(subject.judged())
    assert first == Judged(0, Counter(default=9), (Denied(ip_address("203.0.113.1"), 6, 443, 2, 3.0),))
    asyncio.run(subject.apply(NAMES))
    assert asyncio.run(subject.judged()).generation == 1
    assert not any("flush" in line for line in tools.lines)


def test_a_set_of_denied_destinations_that_fills_up_is_emptied(tools: Tools) -> None:
    subject, _ = make("nft", tools)
    elements = ", ".join(
        f"{ip_address(number)} . 6 . 443 counter packets 1 bytes 60 expires 9s" for number in range(MAX_DENIED // 2 + 1)
    )
    tools.prints["nft -n list table"] = DENIED_SET % elements
    assert len(asyncio.run(subject.judged()).denied) == MAX_DENIED // 2 + 1
    assert tools.lines[-1] == "nft flush set inet wgvsock-relay denied_v4"


def test_what_iptables_judged(tools: Tools) -> None:
    subject, _ = make("iptables", tools)
    asyncio.run(subject.apply(RULES))
    for version in ("iptables", "ip6tables"):
        tools.prints[f"{version}-save -c -t filter"] = "[2:80] -A WGVSOCK-relay-EGR -m comment --comment default -g X\n"
    assert asyncio.run(subject.judged()) == Judged(1, Counter(default=4))


def test_what_tables_of_relays_remember(tools: Tools) -> None:
    tools.prints |= {
        "list tables": "table inet filter\ntable inet wgvsock-relay\ntable inet wgvsock-other\n",
        "inet wgvsock-relay": f'counter packets 0 comment "{FACT}"',
        "inet wgvsock-other": f'counter packets 0 comment "{FACT}"\ncounter comment "{THEIRS}"',
    }
    subject, _ = make("nft", tools)
    assert asyncio.run(subject.facts()) == KnownFacts((FACT,), (FACT, THEIRS))


def test_open_rules_of_a_killed_relay_hold_what_is_pinned(tools: Tools) -> None:
    element = '203.0.113.10 timeout 90s expires 55s comment "pinned www.lab.test"'
    tools.prints |= {
        "list tables": "table inet wgvsock-relay\ntable inet wgvsock-other\n",
        "-n list table inet wgvsock-relay": f"elements = {{ {element} }}",
        "-n list table inet wgvsock-other": f"elements = {{ {element} }}",
    }
    subject, _ = make("nft", tools)
    held = HeldPin("www.lab.test", ip_address("203.0.113.10"), 55.0)
    assert asyncio.run(subject.facts()) == KnownFacts(pinned=(held,))


def test_what_chains_of_relays_remember(tools: Tools) -> None:
    tools.prints["-save"] = (
        f':X - [0:0]\n-A WGVSOCK-relay-LAST -m comment --comment "{FACT}"\n'
        f'-A WGVSOCK-other-LAST -m comment --comment "{THEIRS}"\n-A KUBE -m comment --comment "before x y z"\n'
    )
    subject, _ = make("iptables", tools)
    assert asyncio.run(subject.facts()) == KnownFacts((FACT,), (THEIRS,))


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


def test_the_journal_takes_the_rules_back(tools: Tools) -> None:
    async def undo() -> None:
        await apply.performers(tools)["netfilter"]("nft relay", None)

    asyncio.run(undo())
    assert tools.lines == ["nft -f -"]


ALL = {"nft", "iptables-restore", "ip6tables-restore"}


@pytest.mark.parametrize(
    ("rules", "installed", "refuses", "backend"),
    [
        (RULES, {"nft"}, "", "nft"),
        (RULES, ALL, "", "nft"),
        (RULES, ALL, "nft -c", "iptables"),
        (RULES, ALL - {"nft"}, "", "iptables"),
        (FOUR, {"iptables-restore"}, "", "iptables"),
    ],
)
def test_the_backend_is_the_one_that_takes_these_rules(
    tools: Tools, rules: Ruleset, installed: set[str], refuses: str, backend: str
) -> None:
    if refuses:
        tools.failing[refuses] = (1, "Error: Could not process rule")
    closed = replace(rules, is_open=False)
    assert asyncio.run(choose_backend(closed, tools, lambda name: name if name in installed else None)) == backend
    assert any("dnat" in text.lower() for _, text in tools.runs)  # they were tried as they will be when open


def test_iptables_is_not_chosen_beside_nft_without_saying_why(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(choose_backend(RULES, tools, lambda name: name))
    assert not caplog.text
    tools.failing["nft -c"] = (1, "Error: Could not process rule")
    asyncio.run(choose_backend(RULES, tools, lambda name: name))
    assert "nft: Error: Could not process rule" in caplog.text


@pytest.mark.parametrize(
    ("installed", "why"),
    [
        (set(), "nft is not installed; iptables-restore is not installed"),
        ({"nft"}, "nft: Error: no fib; iptables-restore is not installed"),
        (ALL, "nft: Error: no fib; iptables: No chain/target/match by that name."),
    ],
)
def test_neither_tool_takes_them(tools: Tools, installed: set[str], why: str) -> None:
    tools.failing |= {"nft": (1, "Error: no fib"), "tables-restore": (1, "No chain/target/match by that name.")}
    with pytest.raises(NetfilterError) as caught:
        asyncio.run(choose_backend(RULES, tools, lambda name: name if name in installed else None))
    assert caught.value.why == why


def test_a_tool_s_status_and_complaint() -> None:
    assert asyncio.run(run_tool(["sh", "-c", "cat >&2; exit 3"], "text")) == Ran(3, "text")


def test_a_tool_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # one that we may read
    assert asyncio.run(run_tool(["nft"], "")) == Ran(127, "nft is not installed")


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [("", 0o644, "Permission denied"), ("\x7fELF of another machine", 0o755, "Exec format error")],
)
def test_a_tool_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, mode: int, reason: str
) -> None:
    tool = tmp_path / "nft"
    tool.write_text(content)
    tool.chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(run_tool(["nft"], "")) == Ran(127, f"cannot run nft: {reason}")


def test_a_tool_that_does_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "_RULES_TIMEOUT", 0.01)
    ran = asyncio.run(run_tool(["sleep", "60"], ""))
    assert ran.status == 124
    assert ran.complaint == "sleep did not finish within 0.01 s"
