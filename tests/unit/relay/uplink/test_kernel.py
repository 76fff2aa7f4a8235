"""Another program's changes are repaired, counted and reported once. What cannot be repaired is a problem."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, cast

import pytest

from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.errors import ConfigurationError
from wgvsock.relay.enclaves.interface import make_tunnel_config
from wgvsock.relay.errors import ObstacleError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.kernel import FIGHT, SLOW_LOOK, KernelUplink
from wgvsock.runtime.journal import Journal, Undo
from wgvsock.system.errors import NetfilterError, NetlinkSetupError, ResolverError
from wgvsock.system.facts import Fact
from wgvsock.system.filter import apply
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing import ManualClock
from wgvsock.testing.machine import MemoryMachine
from wgvsock.testing.tun import MemoryTun


class Bench:
    """An uplink on a kernel in memory."""

    def __init__(self, spec: EnclaveSpec, folder: Path) -> None:
        self.spec = spec
        self.machine = MemoryMachine()
        self.kernel, self.filter = self.machine.kernel, self.machine.filter
        self.clock = ManualClock()
        self.machine.monotonic = self.clock  # type: ignore[method-assign]
        self.undone: list[tuple[str, Any]] = []
        performers = dict.fromkeys(
            ("netfilter", "flows", "ipv4_forwarding", "sysctl", "link_state", "routing_rule"), self._undo
        )
        self.journal = Journal(str(folder), "relay", performers)
        self.journal.open()
        scope = self.journal.scope(spec.owner)
        self.kernel.record = scope.record
        self.tun = MemoryTun(packet_headroom=10)
        self.subject = KernelUplink(cast("Any", self.kernel), scope, self.machine, self.tun)

    async def _undo(self, target: str, value: Any) -> None:
        self.undone.append((target, value))

    async def prepare(self) -> None:
        uplink = await self.subject.find(self.spec)
        await self.subject.prepare(self.spec, make_tunnel_config(self.spec, uplink, ResolverSettings()))

    async def open(self) -> None:
        await self.prepare()
        await self.subject.open()


@pytest.fixture
def bench(spec: EnclaveSpec, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(spec, tmp_path)
    yield made
    made.journal.close()
    made.tun.close()


def test_rules_close_before_anything_is_forwarded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    enable = bench.kernel.enable_forwarding
    tables: list[str | None] = []

    async def look(tunnel: str, switches: Any) -> bool:
        tables.append(bench.filter.rules)
        return await enable(tunnel, switches)

    monkeypatch.setattr(bench.kernel, "enable_forwarding", look)
    asyncio.run(bench.prepare())
    (table,) = tables
    assert table is not None
    assert "masquerade" not in table
    assert "iifgroup" in table
    assert 'comment "before ipv4_forwarding eth0 0/0"' in table
    assert bench.kernel.forwarding == {"wg0", "eth0", "ipv6"}
    assert not bench.subject.repairs


def test_without_ipv6_forwarding_ipv4_goes_on_and_one_line_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def look_twice() -> None:
        bench.kernel.barred = ("net.ipv6.conf.all.forwarding",)
        await bench.open()
        assert bench.kernel.forwarding == {"wg0", "eth0"}
        await bench.subject.keep()

    asyncio.run(look_twice())
    snapshot = bench.subject.snapshot()
    assert snapshot is not None
    assert (snapshot.problem, snapshot.unset_sysctls) == (None, ("net.ipv6.conf.all.forwarding",))
    assert caplog.text.count("the relay is IPv4-only") == 1
    assert not bench.subject.repairs


def test_ipv6_forwarding_that_somebody_turns_on_and_off_is_followed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def turn() -> None:
        bench.kernel.barred = ("net.ipv6.conf.all.forwarding",)
        await bench.open()
        bench.kernel.forwarding.add("ipv6")
        await bench.subject.keep()
        assert bench.subject.uplink.versions == {4, 6}
        bench.kernel.forwarding.remove("ipv6")
        await bench.subject.keep()

    asyncio.run(turn())
    assert bench.subject.problem is None
    assert bench.subject.uplink.versions == {4}
    assert caplog.text.count("the relay is IPv4-only") == 2


DISTURBANCES: dict[str, Callable[[Bench], object]] = {
    "rules": lambda bench: bench.filter.tables.clear(),
    "forwarding": lambda bench: bench.kernel.forwarding.clear(),
    "interface": lambda bench: bench.kernel.up.clear(),
}


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_each_change_is_put_right_and_counted(bench: Bench, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def disturb() -> None:
        await bench.open()
        before = bench.filter.rules, set(bench.kernel.forwarding), list(bench.kernel.up)
        await bench.subject.keep()
        assert not bench.subject.repairs
        DISTURBANCES[kind](bench)
        await bench.subject.keep()
        assert (bench.filter.rules, bench.kernel.forwarding, bench.kernel.up) == before
        await bench.subject.keep()

    asyncio.run(disturb())
    assert bench.subject.repairs == {kind: 1}
    assert caplog.text.count("repaired a change that another program made") == 1


def test_the_size_of_the_connection_tracking_is_asked_for_when_the_way_opens(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def open_and_look() -> None:
        await bench.prepare()
        bench.machine.flows_at_most = 3072  # the closed way's rules have loaded it
        await bench.subject.open()
        await bench.subject.keep()

    asyncio.run(open_and_look())
    assert "ct count over 1536" in (bench.filter.rules or "")
    assert not bench.subject.repairs
    assert "max_flows is limited" in caplog.text


def test_a_default_route_that_moves_is_followed(bench: Bench) -> None:
    async def move() -> None:
        await bench.open()
        bench.kernel.mtus["eth1"] = 9001
        bench.kernel.defaults = {4: "eth1", 6: "eth0"}
        await bench.subject.keep()

    asyncio.run(move())
    assert bench.subject.uplink.interfaces == ((4, "eth1"), (6, "eth0"))
    assert 'oifname "eth1" ip saddr 10.73.0.0/24 masquerade' in (bench.filter.rules or "")
    assert "eth1" in bench.kernel.forwarding
    assert {undo.target for undo in bench.journal.changes if undo.kind == "ipv4_forwarding"} == {"eth0", "eth1"}
    assert bench.subject.repairs == {"uplink": 1, "forwarding": 1}


def test_without_a_way_to_the_world_there_is_a_problem_until_there_is_one(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def lose_it() -> None:
        await bench.open()
        bench.kernel.defaults = {4: None, 6: None}
        for _ in range(3):
            await bench.subject.keep()
        assert bench.subject.problem is not None
        assert bench.subject.problem.code == "WGV-E082"
        bench.filter.tables.clear()
        await bench.subject.keep()
        assert bench.filter.rules is not None  # they protect this machine as well
        bench.kernel.defaults = {4: "eth0", 6: "eth0"}
        await bench.subject.keep()
        assert bench.subject.problem is None

    asyncio.run(lose_it())
    assert caplog.text.count("cannot be repaired") == 1


def test_somebody_who_makes_the_machine_a_router_gets_his_packets_forwarded(bench: Bench) -> None:
    async def docker() -> None:
        await bench.open()
        assert "ipv4 iifgroup" in (bench.filter.rules or "")
        bench.kernel.forwarding.add("ipv4")
        await bench.subject.keep()

    asyncio.run(docker())
    assert "ipv4 iifgroup" not in (bench.filter.rules or "")
    assert "ipv6 iifgroup" in (bench.filter.rules or "")
    assert not bench.subject.repairs


class Probes:
    """Replaces the kernel's count of probes with how many of them pass."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.passes = {4, 6}
        self.counts = {4: 0, 6: 0}
        self.put_in: list[int] = []
        monkeypatch.setattr(bench.subject.nat.netfilter, "probes_seen", self.look)
        monkeypatch.setattr(bench.tun, "write", self.write)

    def write(self, packet: memoryview) -> bool:
        assert not any(packet[:10])
        version = packet[10] >> 4
        self.put_in.append(version)
        if version in self.passes:
            self.counts[version] = self.counts.get(version, 0) + 1
        return True

    async def look(self) -> dict[int, int]:
        return dict(self.counts)


def test_what_other_programs_rules_take_is_a_problem_until_they_let_it_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = "table ip filter {\nchain FORWARD {\ntype filter hook forward priority filter; policy drop;\n"

    async def obstruct() -> None:
        await bench.open()
        bench.filter.prints["nft list chains"] = chains
        probes = Probes(bench, monkeypatch)
        await bench.subject.keep()
        assert bench.subject.problem is None
        assert probes.put_in == [4, 6]
        probes.passes = {6}
        await bench.subject.keep()
        problem = bench.subject.problem
        assert isinstance(problem, ObstacleError)
        assert problem.what.startswith("IPv4 packets")
        assert "ip filter FORWARD" in problem.why
        assert probes.put_in[2:] == [4, 6, 4]  # one that is not counted may be on its way
        probes.passes = {4, 6}
        await bench.subject.keep()
        assert bench.subject.problem is None
        probes.counts = {4: 0, 6: 0}  # our rules were put in force again
        await bench.subject.keep()
        assert bench.subject.problem is None
        probes.counts, probes.passes = {4: 0, 6: 0}, set()  # again, and now nothing passes: 0 is no news
        await bench.subject.keep()
        assert isinstance(bench.subject.problem, ObstacleError)

    asyncio.run(obstruct())


@pytest.mark.parametrize("reopened", [False, True])
def test_a_way_that_is_closed_while_it_is_probed_is_no_obstacle(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    async def close() -> tuple[str, ...]:
        await bench.subject.close()
        if reopened:
            await bench.subject.open()
        return ()

    async def look() -> None:
        await bench.open()
        Probes(bench, monkeypatch).passes = set()
        monkeypatch.setattr(bench.subject.nat.netfilter, "who_drops", close)
        await bench.subject.keep()
        assert bench.subject.problem is None
        await bench.subject.open()
        bench.subject.problem = known = ObstacleError("known already")
        await bench.subject.keep()
        assert bench.subject.problem is known

    asyncio.run(look())


def test_a_way_that_is_closed_or_whose_probes_nobody_counts_is_not_probed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look() -> None:
        await bench.prepare()
        probes = Probes(bench, monkeypatch)
        probes.passes = set()
        await bench.subject.keep()
        assert probes.put_in == []
        await bench.subject.open()
        probes.counts = {}  # the chain is gone, which is a matter of the rules
        await bench.subject.keep()
        assert bench.subject.problem is None

    asyncio.run(look())


def test_a_fight_is_seen_and_its_end_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    count, span = FIGHT

    async def fight() -> None:
        await bench.open()
        for _ in range(count * 2):
            bench.filter.tables.clear()
            await bench.subject.keep()

    asyncio.run(fight())
    assert list(bench.subject.contested) == ["rules"]
    assert caplog.text.count("undoes every repair") == 1
    assert caplog.text.count("repaired a change") == count
    bench.clock.advance(span + 1)
    assert list(bench.subject.contested) == []


def test_a_reload_changes_rules_and_interface_and_is_no_repair(bench: Bench) -> None:
    async def reload() -> None:
        await bench.open()
        changed = replace(bench.spec, nat=replace(bench.spec.nat, masquerade=False))
        tunnel = make_tunnel_config(changed, bench.subject.uplink, ResolverSettings())
        await bench.subject.adopt(changed, replace(tunnel, mtu=1400))

    asyncio.run(reload())
    assert not bench.filter.is_open  # without masquerade, as the double sees it
    assert bench.subject.nat.is_open
    assert bench.kernel.mtus["wg0"] == 1400
    assert not bench.subject.repairs


def test_a_prefix_that_is_in_use_stops_the_start(bench: Bench, spec: EnclaveSpec) -> None:
    bench.kernel.addresses["eth0"] = list(spec.interface.addresses)
    with pytest.raises(ConfigurationError, match=r"10\.73"):
        asyncio.run(bench.prepare())
    assert bench.filter.history == []


def test_what_another_relay_needs_is_left_to_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave() -> None:
        await bench.subject.leave_to_others()  # nothing was changed yet
        await bench.open()

        async def facts() -> apply.KnownFacts:
            return apply.KnownFacts(others=(Fact("ipv4_forwarding", "eth0", "0/0"),))

        monkeypatch.setattr(bench.subject.nat.netfilter, "facts", facts)
        await bench.subject.leave_to_others()
        await bench.journal.undo_all()

    asyncio.run(leave())
    assert "eth0" not in {target for target, _ in bench.undone}
    assert ("nft relay", None) in bench.undone


def test_it_looks_whenever_the_kernel_has_news(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    class News:
        async def wait(self, _patience: float) -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:
                bench.kernel.defaults = {4: "eth1", 6: "eth1"}
            if looks == 4:
                resolved[:] = [ResolverSettings((ip_address("192.0.2.53"),))]
            if looks == 6:
                resolved.clear()
            if looks == 8:
                raise asyncio.CancelledError
            return False

    bench.machine.notifications = News()
    resolved = [ResolverSettings()]

    def read() -> ResolverSettings:
        if not resolved:
            raise ResolverError("cannot read /etc/resolv.conf", why="the test says so")
        return resolved[0]

    monkeypatch.setattr(bench.machine, "resolver", read)
    monkeypatch.setattr("wgvsock.relay.uplink.kernel.SETTLE", 0.0)
    told: list[tuple[int, str]] = []

    async def watch() -> None:
        await bench.open()
        bench.kernel.mtus["eth1"] = 1500
        with pytest.raises(asyncio.CancelledError):
            await bench.subject.watch(lambda: told.append((looks, bench.subject.uplink.name)))

    asyncio.run(watch())
    assert told == [(2, "eth1"), (4, "eth1"), (6, "eth1")]


def test_the_undo_survives_what_the_journal_forgot(bench: Bench) -> None:
    """The container restarts: the same namespace and its switches, and an empty /run."""
    bench.filter.tables["wgvsock-relay"] = (
        'table inet wgvsock-relay\n counter comment "before ipv4_forwarding eth0 0/0"\n'
    )
    bench.kernel.forwarding = {"eth0"}
    asyncio.run(bench.prepare())
    assert Undo("ipv4_forwarding", "eth0", "0/0") in bench.journal.changes
    assert "ipv4 iifgroup" in (bench.filter.rules or "")


@pytest.mark.parametrize("went", [True, False])
def test_rules_that_somebody_took_away_come_back_before_anything_settles(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, went: bool
) -> None:
    present: list[bool] = []

    class News:
        async def wait(self, _patience: float) -> bool:
            bench.filter.tables.clear()
            return went

    async def settle(_seconds: float) -> None:
        present.append(bool(bench.filter.tables))
        raise asyncio.CancelledError

    async def watch() -> None:
        await bench.open()
        bench.machine.notifications = News()
        monkeypatch.setattr("wgvsock.relay.uplink.kernel.asyncio.sleep", settle)
        with pytest.raises(asyncio.CancelledError):
            await bench.subject.watch(lambda: None)

    asyncio.run(watch())
    assert present == [went]
    assert bench.subject.repairs["rules"] == went


def test_nothing_is_routed_without_our_mark_before_forwarding_is_on(bench: Bench) -> None:
    bench.kernel.refuses = {"enable_forwarding"}
    with pytest.raises(NetlinkSetupError):
        asyncio.run(bench.prepare())
    assert bench.kernel.marked == {("wg0", 4), ("wg0", 6)}
    bench.kernel.refuses.clear()
    asyncio.run(bench.open())
    bench.kernel.marked.clear()  # another program's `ip rule flush`
    asyncio.run(bench.subject.keep())
    assert bench.kernel.marked == {("wg0", 4), ("wg0", 6)}
    assert bench.subject.repairs == {"routing policy": 1}


def test_a_kernel_without_policy_routing_serves_all_the_same(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.kernel.refuses = {"require_mark"}
    asyncio.run(bench.open())
    asyncio.run(bench.subject.keep())
    assert bench.subject.problem is None
    assert "a flush of the packet filter lets packets out" in caplog.text


NAMES = EgressSettings("deny", (RuleSettings(name="www.lab.test"), RuleSettings(name="*.example.com")))
PINNED = ip_address("203.0.113.10")


def test_a_repair_and_a_reload_keep_what_is_pinned(bench: Bench) -> None:
    bench.spec = replace(bench.spec, egress=NAMES)
    element = f"{PINNED} timeout"

    async def follow() -> None:
        await bench.open()
        egress = bench.subject.egress
        assert await egress.pin("www.lab.test", [(PINNED, 60.0)]) == frozenset()
        assert element in bench.filter.pinned[-1]
        bench.filter.tables.clear()  # another program's flush ruleset
        await bench.subject.keep()
        assert element in (bench.filter.rules or "")
        for settings, stays in ((EgressSettings("deny", NAMES.allow[:1]), True), (EgressSettings(), False)):
            spec = replace(bench.spec, egress=settings)
            uplink = await bench.subject.find(spec)
            await bench.subject.adopt(spec, make_tunnel_config(spec, uplink, ResolverSettings()))
            assert (element in (bench.filter.rules or "")) is stays
            assert egress.policy == settings.policy()

    asyncio.run(follow())
    assert bench.subject.repairs == {"rules": 1}


def test_no_name_stands_for_this_machine_s_own_addresses(bench: Bench) -> None:
    bench.spec = replace(bench.spec, egress=NAMES)
    own = [ip_interface("10.20.0.10/24"), ip_interface("10.20.0.11/24")]

    async def follow() -> None:
        bench.kernel.addresses["eth0"] = own[:1]
        await bench.open()
        await bench.subject.keep()
        tunnel = [address.ip for address in (*bench.spec.enclave.addresses, *bench.spec.interface.addresses)]
        found = [(address, 60.0) for address in (*tunnel, *(address.ip for address in own))]
        withheld = await bench.subject.egress.pin("www.lab.test", found)
        assert withheld == {*tunnel, own[0].ip}
        bench.kernel.addresses["eth0"] = own[1:]  # addresses come and go
        await bench.subject.keep()
        assert await bench.subject.egress.pin("www.lab.test", [(own[1].ip, 60.0)]) == {own[1].ip}

    asyncio.run(follow())


def test_what_the_rules_counted_is_looked_at_now_and_then(bench: Bench) -> None:
    async def follow() -> None:
        await bench.open()
        bench.filter.prints["nft -n list table"] = 'counter packets 9 bytes 0 goto admit comment "default"'
        await bench.subject.keep()
        bench.filter.prints["nft -n list table"] = 'counter packets 10 bytes 0 goto admit comment "default"'
        await bench.subject.keep()
        assert bench.subject.egress.snapshot().others == {"default": 9}
        bench.clock.advance(SLOW_LOOK)
        await bench.subject.keep()

    asyncio.run(follow())
    snapshot = bench.subject.snapshot()
    assert snapshot is not None
    assert snapshot.egress.others == {"default": 10}


def test_names_need_nft(bench: Bench) -> None:
    bench.spec = replace(bench.spec, egress=NAMES)
    bench.machine.tools = {"iptables-restore": "x", "ip6tables-restore": "x"}
    with pytest.raises(NetfilterError, match="iptables has no sets"):
        asyncio.run(bench.open())


def test_a_reload_that_the_packet_filter_refuses_changes_no_policy(bench: Bench) -> None:
    async def follow() -> None:
        await bench.open()
        bench.filter.refuses.add("nft -f -")
        spec = replace(bench.spec, egress=NAMES)
        uplink = await bench.subject.find(spec)
        with pytest.raises(NetfilterError):
            await bench.subject.adopt(spec, make_tunnel_config(spec, uplink, ResolverSettings()))
        assert bench.subject.egress.allows("anything.test")

    asyncio.run(follow())


def test_rules_that_are_left_to_the_next_relay_have_what_is_pinned(bench: Bench, tmp_path: Path) -> None:
    bench.spec = replace(bench.spec, egress=NAMES)

    async def follow() -> None:
        await bench.open()
        await bench.subject.egress.pin("www.lab.test", [(PINNED, 600.0)])
        await bench.subject.leave()
        left = bench.filter.rules or ""
        assert f'counter comment "before pinned www.lab.test {PINNED}/' in left
        assert "masquerade" not in left
        bench.subject = KernelUplink(cast("Any", bench.kernel), bench.journal.scope("next"), bench.machine, bench.tun)
        await bench.prepare()
        assert "before pinned" not in (bench.filter.rules or "")
        await bench.subject.open()
        assert f"{PINNED} timeout" in (bench.filter.rules or "")

    asyncio.run(follow())
