"""What a configuration requires of the packet filter, and when it is in force."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from wgvsock.addresses import IpInterface
from wgvsock.egress.settings import EgressSettings, PolicySettings, RuleSettings
from wgvsock.relay.enclaves.interface import Uplink, make_tunnel_config
from wgvsock.relay.sections import NatSettings, PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.nat import MAX_REMEMBERED, Nat, make_ruleset, published_ports
from wgvsock.runtime.journal import Undo
from wgvsock.system.errors import NetfilterError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import Netfilter, Ran
from wgvsock.system.filter.rules import PublishedPort, Ruleset
from wgvsock.system.flows import WantedFlows
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.kernel import MemoryFilter
from wgvsock.testing.machine import MemoryMachine

HERE: list[tuple[str, IpInterface]] = [
    ("lo", ip_interface("192.0.2.1/32")),
    ("eth0", ip_interface("10.20.0.10/24")),
    ("eth1", ip_interface("10.30.0.10/24")),
    ("wg0", ip_interface("10.73.0.1/24")),
]
UPLINK = Uplink(((4, "eth0"), (6, "eth0")), 1500, frozenset({4, 6}))
BEFORE = (Fact("ipv4_forwarding", "eth0", "0/0"),)


@pytest.fixture
def rules(spec: EnclaveSpec) -> Ruleset:
    egress = EgressSettings("deny", (RuleSettings(network=ip_network("169.254.1.0/24")),), (), 10, 20)
    spec = replace(spec, nat=NatSettings(publish=(PublishSettings("tcp", 80, 8080),)), egress=egress)
    tunnel = make_tunnel_config(spec, UPLINK, ResolverSettings())
    return make_ruleset(spec, tunnel, uplink=UPLINK, before=BEFORE, confined=frozenset({4}))


def test_the_ruleset(rules: Ruleset) -> None:
    assert rules == Ruleset(
        owner="relay",
        tunnel="wg0",
        uplinks=((4, "eth0"), (6, "eth0")),
        sources=(ip_network("10.73.0.0/24"), ip_network("fd73::/64")),
        published=(
            PublishedPort("tcp", 80, ip_address("10.73.0.2"), 8080),
            PublishedPort("tcp", 80, ip_address("fd73::2"), 8080),
        ),
        policy=PolicySettings("deny", (RuleSettings(network=ip_network("169.254.1.0/24")),)).policy(),
        resolvers=(ip_address("10.96.0.10"),),
        relay=(ip_address("10.73.0.1"), ip_address("fd73::1")),
        max_new_flows=10,
        max_flows=20,
        confined=frozenset({4}),
        before=BEFORE,
        enclave=(ip_address("10.73.0.2"), ip_address("fd73::2")),
    )


def test_a_port_leads_to_the_first_address_of_each_family(spec: EnclaveSpec) -> None:
    enclave = replace(spec.enclave, addresses=(*spec.enclave.addresses, *spec.interface.addresses))
    spec = replace(spec, enclave=enclave, nat=NatSettings(publish=(PublishSettings("udp", 53),)))
    assert [(port.destination, port.destination_port) for port in published_ports(spec)] == [
        (ip_address("10.73.0.2"), 53),
        (ip_address("fd73::2"), 53),
    ]


class Forgiven(list[Collection[Any]]):
    """Replaces `forgive_interruption`, and records the networks."""

    fails = False

    def __call__(self, networks: Collection[Any]) -> int:
        if self.fails:
            raise NetfilterError("cannot adjust", why="no module")
        self.append(networks)
        return 2


@pytest.fixture
def machine() -> MemoryMachine:
    return MemoryMachine()


@pytest.fixture
def forgiven(machine: MemoryMachine, monkeypatch: pytest.MonkeyPatch) -> Forgiven:
    double = Forgiven()
    monkeypatch.setattr(machine, "forgive_interruption", double)
    return double


@pytest.fixture
def tool(machine: MemoryMachine) -> MemoryFilter:
    return machine.filter


@pytest.fixture
def recorded() -> list[Undo]:
    return []


class Tracking:
    """Replaces `delete_stale`, and the machine's addresses. Records what was wanted."""

    def __init__(self) -> None:
        self.wanted: list[WantedFlows] = []
        self.here = list(HERE)
        self.fails = False

    async def delete(self, wanted: WantedFlows) -> Counter[str]:
        if self.fails:
            raise NetfilterError("cannot adjust", why="no module")
        self.wanted.append(wanted)
        return Counter(early=len(wanted.published), withdrawn=len(wanted.withdrawn))

    async def addresses(self) -> list[tuple[str, IpInterface]]:
        return self.here


@pytest.fixture
def tracking(machine: MemoryMachine, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    double = Tracking()
    monkeypatch.setattr(machine, "delete_stale", double.delete)
    return double


@pytest.fixture
def nat(machine: MemoryMachine, forgiven: Forgiven, tracking: Tracking, recorded: list[Undo]) -> Nat:
    def record(undo: Undo) -> Undo:
        recorded.append(undo)
        return undo

    return Nat(Netfilter("nft", "relay", record, machine.run_tool), machine, tracking.addresses)


def test_opening_is_recorded_and_done_once(
    nat: Nat, tool: MemoryFilter, rules: Ruleset, forgiven: Forgiven, recorded: list[Undo]
) -> None:
    assert not nat.is_open
    asyncio.run(nat.open(rules))
    asyncio.run(nat.open(rules))
    assert nat.is_open
    assert tool.is_open
    assert len(tool.history) == 1
    assert recorded == [Undo("netfilter", "nft relay"), Undo("flows", "10.73.0.2"), Undo("flows", "fd73::2")]
    assert forgiven == [rules.sources]


def test_a_change_of_open_rules_interrupts_nothing(nat: Nat, rules: Ruleset, forgiven: Forgiven) -> None:
    asyncio.run(nat.open(rules))
    asyncio.run(nat.open(replace(rules, published=())))
    assert len(forgiven) == 1


def test_closing_keeps_the_table_and_lets_nothing_pass(nat: Nat, tool: MemoryFilter, rules: Ruleset) -> None:
    asyncio.run(nat.close(rules))
    asyncio.run(nat.close(rules))
    assert not nat.is_open
    assert tool.rules is not None
    assert "masquerade" not in tool.rules
    assert len(tool.history) == 1
    asyncio.run(nat.open(rules))
    assert tool.is_open
    asyncio.run(nat.close(rules))
    assert not tool.is_open


def test_rules_that_are_refused_are_not_in_force(nat: Nat, tool: MemoryFilter, rules: Ruleset) -> None:
    tool.refuses.add("nft")
    for change in (nat.open, nat.close):
        with pytest.raises(NetfilterError):
            asyncio.run(change(rules))
    assert nat.rules is None


def test_without_flows_nothing_is_said(
    nat: Nat, machine: MemoryMachine, rules: Ruleset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "forgive_interruption", lambda networks: 0)
    with caplog.at_level("INFO"):
        asyncio.run(nat.forgive_interruption(rules))
    assert not caplog.text


def test_connection_tracking_that_refuses_is_no_reason_to_stay_closed(
    nat: Nat, rules: Ruleset, forgiven: Forgiven, caplog: pytest.LogCaptureFixture
) -> None:
    forgiven.fails = True
    asyncio.run(nat.open(rules))
    assert nat.is_open
    assert "cannot adjust" in caplog.text


def test_nothing_is_kept_before_anything_is_in_force(nat: Nat, tool: MemoryFilter, rules: Ruleset) -> None:
    assert not asyncio.run(nat.keep(rules))
    assert tool.history == []


@pytest.mark.parametrize("is_open", [True, False])
def test_rules_that_somebody_removed_are_put_back_as_they_were(
    nat: Nat, tool: MemoryFilter, rules: Ruleset, is_open: bool
) -> None:
    asyncio.run(nat.open(rules) if is_open else nat.close(rules))
    assert not asyncio.run(nat.keep(rules))
    tool.tables.clear()
    assert asyncio.run(nat.keep(rules))
    assert tool.rules is not None
    assert tool.is_open == nat.is_open == is_open


def test_rules_that_we_want_otherwise_are_no_repair(nat: Nat, tool: MemoryFilter, rules: Ruleset) -> None:
    asyncio.run(nat.open(rules))
    assert not asyncio.run(nat.keep(replace(rules, confined=frozenset())))
    assert tool.rules is not None
    assert "iifgroup" not in tool.rules
    assert nat.is_open


def test_after_an_interrupted_change_nobody_knows_what_is_in_force(
    nat: Nat, tool: MemoryFilter, rules: Ruleset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR2 while nft works: the closing code must not believe that the uplink is closed already."""

    async def hang(command: object, text: str) -> Ran:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def interrupted() -> None:
        await nat.close(rules)
        monkeypatch.setattr(nat.netfilter, "_run", hang)
        opening = asyncio.ensure_future(nat.open(rules))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])

    monkeypatch.setattr("wgvsock.relay.uplink.nat.asyncio.to_thread", _inline)
    asyncio.run(interrupted())
    assert nat.rules is None
    assert not nat.is_open
    monkeypatch.setattr(nat.netfilter, "_run", tool)
    asyncio.run(nat.close(rules))
    assert nat.rules is not None
    assert not nat.rules.is_open
    assert len(tool.history) == 2


def test_while_rules_are_replaced_those_of_before_are_in_force(
    nat: Nat, tool: MemoryFilter, rules: Ruleset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool replaces them at once: a reload makes no client unready."""
    seen: list[Ruleset | None] = []

    async def look(command: object, text: str) -> Ran:
        seen.append(nat.rules)
        return await tool(command, text)  # type: ignore[arg-type]

    asyncio.run(nat.open(rules))
    before = nat.rules
    monkeypatch.setattr(nat.netfilter, "_run", look)
    asyncio.run(nat.open(replace(rules, published=())))
    assert seen
    assert set(seen) == {before}


async def _inline(call: Any, *arguments: Any) -> Any:
    return call(*arguments)


WEB4 = PublishedPort("tcp", 80, ip_address("10.73.0.2"), 8080)
WEB6 = PublishedPort("tcp", 80, ip_address("fd73::2"), 8080)
UPLINK_ADDRESS = ip_address("10.20.0.10")


def test_flows_follow_open_rules_and_no_others(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    asyncio.run(nat.close(rules))
    asyncio.run(nat.open(rules))
    closed, opened = tracking.wanted
    assert closed.published == frozenset()
    assert opened.published == {WEB4, WEB6}
    assert opened.withdrawn == frozenset()
    assert opened.arrivals == {UPLINK_ADDRESS, ip_address("192.0.2.1")}
    assert opened.local == {address.ip for _, address in HERE}
    assert opened.enclave == {ip_address("10.73.0.2"), ip_address("fd73::2")}
    assert nat.deleted_flows == {"early": 2}


@pytest.mark.parametrize("is_open", [True, False])
def test_a_port_that_the_configuration_drops_is_withdrawn(
    nat: Nat, tracking: Tracking, tool: MemoryFilter, rules: Ruleset, is_open: bool
) -> None:
    asyncio.run(nat.open(rules) if is_open else nat.close(rules))
    asyncio.run(nat.keep(replace(rules, published=())))
    assert tracking.wanted[-1].withdrawn == {WEB4, WEB6}
    assert tracking.wanted[-1].published == frozenset()
    assert "before published tcp/80 10.73.0.2/8080" in (tool.rules or "")
    asyncio.run(nat.keep(rules))
    assert tracking.wanted[-1].withdrawn == frozenset()


def test_closing_withdraws_nothing(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    """Flows outlive an interruption and a restart: the closed rules let none of their packets pass."""
    asyncio.run(nat.open(rules))
    asyncio.run(nat.close(rules))
    assert tracking.wanted[-1].withdrawn == tracking.wanted[-1].ended == frozenset()


def test_whoever_is_replaced_keeps_its_clients(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    asyncio.run(nat.open(rules))
    asyncio.run(nat.keep(replace(rules, published=(), draining=True)))
    assert tracking.wanted[-1].published == tracking.wanted[-1].withdrawn == frozenset()


def test_a_port_of_the_relay_before_is_withdrawn(
    nat: Nat, machine: MemoryMachine, tracking: Tracking, rules: Ruleset
) -> None:
    known = (*BEFORE, WEB4.fact())
    successor = Nat(nat.netfilter, machine, tracking.addresses, known)
    asyncio.run(successor.close(replace(rules, published=())))
    assert tracking.wanted[-1].withdrawn == {WEB4}


def test_a_look_at_flows_that_are_right_costs_nothing(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    asyncio.run(nat.open(rules))
    asyncio.run(nat.keep(rules))
    assert len(tracking.wanted) == 1


def test_rules_that_were_put_back_have_their_flows_looked_at_again(
    nat: Nat, tracking: Tracking, tool: MemoryFilter, rules: Ruleset
) -> None:
    asyncio.run(nat.open(rules))
    tool.tables.clear()
    asyncio.run(nat.keep(rules))
    assert len(tracking.wanted) == 2


def test_an_address_that_goes_away(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    asyncio.run(nat.open(rules))
    tracking.here[1] = ("eth0", ip_interface("10.20.0.11/24"))
    asyncio.run(nat.keep(rules))
    assert tracking.wanted[-1].gone == {UPLINK_ADDRESS}
    asyncio.run(nat.keep(rules))
    assert tracking.wanted[-1].gone == frozenset()


def test_an_enclave_that_gets_another_address(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    asyncio.run(nat.open(rules))
    asyncio.run(nat.keep(replace(rules, enclave=(ip_address("10.73.0.9"),))))
    assert tracking.wanted[-1].ended == {ip_address("10.73.0.2"), ip_address("fd73::2")}


def test_closing_does_not_wait_for_flows_to_be_deleted(
    nat: Nat, machine: MemoryMachine, tool: MemoryFilter, rules: Ruleset, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        deleting, done = asyncio.Event(), asyncio.Event()

        async def delete(wanted: WantedFlows) -> Counter[str]:
            deleting.set()
            await done.wait()
            return Counter()

        monkeypatch.setattr(machine, "delete_stale", delete)
        opening = asyncio.ensure_future(nat.open(rules))
        await deleting.wait()
        closing = asyncio.ensure_future(nat.close(rules))
        while nat.is_open:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not tool.is_open
        done.set()
        await asyncio.gather(opening, closing)

    asyncio.run(scenario())


def test_a_pass_that_fails_is_said_once_and_made_up_for(
    nat: Nat, tracking: Tracking, rules: Ruleset, caplog: pytest.LogCaptureFixture
) -> None:
    tracking.fails = True
    asyncio.run(nat.open(rules))
    asyncio.run(nat.keep(rules))
    assert nat.is_open
    assert caplog.text.count("cannot adjust") == 1
    tracking.fails = False
    asyncio.run(nat.keep(rules))
    assert [wanted.published for wanted in tracking.wanted] == [{WEB4, WEB6}]


def test_only_the_latest_withdrawn_ports_are_remembered(nat: Nat, tracking: Tracking, rules: Ruleset) -> None:
    many = tuple(replace(WEB4, port=port) for port in range(1, MAX_REMEMBERED + 10))
    asyncio.run(nat.open(replace(rules, published=many)))
    asyncio.run(nat.keep(replace(rules, published=())))
    withdrawn = tracking.wanted[-1].withdrawn
    assert len(withdrawn) == MAX_REMEMBERED
    assert many[-1] in withdrawn
    assert many[0] not in withdrawn


@pytest.mark.parametrize(("size", "most"), [(None, 16_384), (262_144, 16_384), (3072, 1536), (1, 1)])
def test_an_enclave_leaves_others_half_of_the_connection_tracking(
    spec: EnclaveSpec, size: int | None, most: int
) -> None:
    tunnel = make_tunnel_config(spec, UPLINK, ResolverSettings())
    assert make_ruleset(spec, tunnel, uplink=UPLINK, conntrack_size=size).max_flows == most
