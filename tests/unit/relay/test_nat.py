"""What a configuration asks of the packet filter, and when it is in force."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from wgvsock.relay.config import NatSettings, PublishSettings, RelayConfig
from wgvsock.relay.nat import Nat, make_ruleset, published_ports
from wgvsock.relay.network import Uplink, make_tunnel_config
from wgvsock.system import conntrack, netfilter
from wgvsock.system.errors import NetfilterError
from wgvsock.system.journal import Undo
from wgvsock.system.netfilter import Netfilter, PublishedPort, Ruleset
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.kernel import MemoryFilter

UPLINK = Uplink("eth0", 1500, frozenset({4, 6}))


@pytest.fixture
def rules(config: RelayConfig) -> Ruleset:
    nat = NatSettings(publish=(PublishSettings("tcp", 80, 8080),), allow_link_local=(ip_network("169.254.1.0/24"),))
    config = replace(config, nat=nat)
    tunnel = make_tunnel_config(config, UPLINK, ResolverSettings())
    return make_ruleset(config, tunnel, uplink="eth0", forwards_others=True)


def test_the_ruleset(rules: Ruleset) -> None:
    assert rules == Ruleset(
        tunnel="wg0",
        uplink="eth0",
        sources=(ip_network("10.73.0.0/24"), ip_network("fd73::/64")),
        published=(
            PublishedPort("tcp", 80, ip_address("10.73.0.2"), 8080),
            PublishedPort("tcp", 80, ip_address("fd73::2"), 8080),
        ),
        open_destinations=(ip_network("169.254.1.0/24"),),
        resolvers=(ip_address("10.96.0.10"),),
        forwards_others=True,
    )


def test_a_port_leads_to_the_first_address_of_each_family(config: RelayConfig) -> None:
    enclave = replace(config.enclave, addresses=(*config.enclave.addresses, *config.interface.addresses))
    config = replace(config, enclave=enclave, nat=NatSettings(publish=(PublishSettings("udp", 53),)))
    assert [(port.destination, port.destination_port) for port in published_ports(config)] == [
        (ip_address("10.73.0.2"), 53),
        (ip_address("fd73::2"), 53),
    ]


class Forgiven(list[Collection[Any]]):
    """In place of `forgive_interruption`; remembers the networks."""

    fails = False

    def __call__(self, networks: Collection[Any]) -> int:
        if self.fails:
            raise NetfilterError("cannot adjust", why="no module")
        self.append(networks)
        return 2


@pytest.fixture
def forgiven(monkeypatch: pytest.MonkeyPatch) -> Forgiven:
    double = Forgiven()
    monkeypatch.setattr(conntrack, "forgive_interruption", double)
    return double


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> MemoryFilter:
    double = MemoryFilter()
    monkeypatch.setattr(netfilter, "run_tool", double)
    return double


@pytest.fixture
def recorded() -> list[Undo]:
    return []


@pytest.fixture
def nat(tool: MemoryFilter, forgiven: Forgiven, recorded: list[Undo]) -> Nat:
    def record(undo: Undo) -> Undo:
        recorded.append(undo)
        return undo

    return Nat(Netfilter("nft", record))


def test_opening_is_recorded_and_done_once(
    nat: Nat, tool: MemoryFilter, rules: Ruleset, forgiven: Forgiven, recorded: list[Undo]
) -> None:
    assert not nat.is_open
    asyncio.run(nat.open(rules))
    asyncio.run(nat.open(rules))
    assert nat.is_open
    assert tool.is_open
    assert len(tool.history) == 1
    assert recorded == [Undo("netfilter", "nft")]
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
    nat: Nat, rules: Ruleset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conntrack, "forgive_interruption", lambda networks: 0)
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
