from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from typing import Any, cast

import pytest

from wgvsock.relay.enclaves.interface import Uplink, make_tunnel_config
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.surroundings import Lookout, look_around, own_resolver
from wgvsock.system.errors import ResolverError
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.machine import MemoryMachine


def test_the_relay_s_own_addresses_are_this_machine_s_and_its_ends_of_the_tunnel(spec: EnclaveSpec) -> None:
    machine = MemoryMachine()
    here = asyncio.run(machine.kernel.networks(besides=()))
    uplink = Uplink(((4, "eth0"), (6, "eth0")), 1500, frozenset({4, 6}))
    tunnel = make_tunnel_config(spec, uplink, ResolverSettings())
    site = asyncio.run(look_around(cast("Any", machine.kernel), spec, tunnel))
    assert site.relay == {address.ip for _, address in here} | {ip_address("10.73.0.1"), ip_address("fd73::1")}
    assert site.resolvers == set(tunnel.nameservers)
    assert ip_network("10.73.0.0/24") in site.tunnels


def test_a_resolv_conf_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MemoryMachine()
    assert own_resolver(machine) == machine.resolver()

    def read() -> ResolverSettings:
        raise ResolverError("cannot read it", why="the test says so", fix="none")

    monkeypatch.setattr(machine, "resolver", read)
    assert own_resolver(machine) is None


def test_another_way_and_another_resolv_conf_are_noticed_once_each() -> None:
    machine = MemoryMachine()
    ways = [Uplink(((4, name),), 1500, frozenset({4})) for name in ("eth0", "eth1")]
    way, told = ways[0], 0

    async def keep() -> None:
        nonlocal way
        way = ways[1]

    async def leave() -> None:
        """Nothing is to be mended."""

    def changed() -> None:
        nonlocal told
        told += 1

    async def test() -> None:
        lookout = Lookout(machine)
        lookout.begin()
        await lookout.look(leave, lambda: way, changed)
        assert told == 0
        await lookout.look(keep, lambda: way, changed)
        assert told == 1
        machine.resolver_settings = ResolverSettings(servers=(ip_address("10.0.0.53"),))
        for _ in range(2):
            await lookout.look(leave, lambda: way, changed)
        assert told == 2

    asyncio.run(test())
