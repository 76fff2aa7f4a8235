"""A room is opened and closed as a whole, and what two rooms share is undone with the last of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.judgements import Judgements
from wgvsock.relay.sections import DnsSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.runtime.journal import Journal
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.nitro_cli import EnclaveInfo
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ConnectError, ListenError
from wgvsock.wireguard import Timings


class Bench:
    """A machine and a journal for several rooms."""

    def __init__(self, spec: EnclaveSpec, folder: Path) -> None:
        self.spec = replace(spec, runtime_directory=str(folder))
        self.machine = MemoryMachine()
        self.undone: list[str] = []
        performers = dict(self.machine.performers())

        async def undo(target: str, _value: object) -> None:
            self.undone.append(target)

        performers |= dict.fromkeys(("ipv4_forwarding", "sysctl"), undo)
        self.journal = Journal(str(folder), "relay", performers)
        self.journal.open()

    def room(self, spec: EnclaveSpec | None = None) -> Room:
        spec = spec or self.spec
        scope = self.journal.scope(spec.owner)
        self.machine.kernel.record = scope.record
        judgements = Judgements(spec.runtime_directory, spec.relay, None, wall_clock=self.machine.wall_clock)
        return Room(spec, self.machine, scope, judgements, incarnation=1, timings=Timings())


@pytest.fixture
def bench(spec: EnclaveSpec, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(spec, tmp_path)
    yield made
    made.journal.close()


def test_the_pool_s_ipv6_addresses_are_left_out_where_ipv6_is_off(bench: Bench) -> None:
    nowhere = replace(bench.spec, enclave=replace(bench.spec.enclave, addresses=()))
    spec = nowhere.linked()
    assert {address.version for address in spec.enclave.addresses} == {4, 6}
    bench.machine.kernel.without_ipv6.add("wg0")

    async def live() -> None:
        room = bench.room(spec)
        await room.open()
        await room.put_in_force(spec, room.settings_for(spec))  # as a reload does
        for addresses in (room.tunnel_config.addresses, room.spec.interface.addresses, room.tunnel_config.gateways):
            assert {address.version for address in addresses} == {4}
        assert {address.version for address in bench.machine.kernel.addresses["wg0"]} == {4}
        await room.close(terminate=False, leave_rules=False)

    asyncio.run(live())


def test_an_operator_s_ipv6_addresses_are_not_left_out(bench: Bench) -> None:
    bench.machine.kernel.without_ipv6.add("wg0")

    async def live() -> None:
        room = bench.room()
        with pytest.raises(NetlinkSetupError, match="cannot set the addresses"):
            await room.open()
        await room.close(terminate=False, leave_rules=False)

    asyncio.run(live())


def test_a_room_is_set_up_closed_and_taken_back(bench: Bench) -> None:
    async def live() -> None:
        room = bench.room()
        await room.open()
        assert room.is_open
        assert bench.machine.filter.rules is not None
        assert not bench.machine.filter.is_open
        assert bench.machine.kernel.up == ["wg0"]
        await room.close(terminate=True, leave_rules=False)

    asyncio.run(live())
    assert bench.machine.filter.rules is None
    assert bench.journal.changes == ()
    assert set(bench.undone) == {"eth0", "/proc/sys/net/ipv6/conf/all/forwarding"}


def test_what_two_rooms_switched_the_last_one_sets_back(bench: Bench) -> None:
    async def live() -> None:
        one, two = bench.room(), bench.room(bench.spec.successor(1))
        await one.open()
        bench.machine.kernel.record = bench.journal.scope(two.spec.owner).record
        await two.open()
        assert set(bench.machine.filter.tables) == {"wgvsock-relay", "wgvsock-relay/enclave/2"}
        assert bench.machine.kernel.addresses["wg1"]
        await one.close(terminate=True, leave_rules=False)
        assert bench.undone == []
        assert set(bench.machine.filter.tables) == {"wgvsock-relay/enclave/2"}
        await two.close(terminate=True, leave_rules=False)

    asyncio.run(live())
    assert "eth0" in bench.undone
    assert bench.machine.filter.tables == {}


def test_a_room_that_cannot_be_opened_leaves_nothing(bench: Bench) -> None:
    bench.machine.kernel.defaults = {4: None, 6: None}

    async def live() -> None:
        room = bench.room()
        with pytest.raises(UplinkError):
            await room.open()
        assert not room.is_open
        await room.close(terminate=True, leave_rules=False)

    asyncio.run(live())
    assert bench.machine.filter.tables == {}
    assert bench.journal.changes == ()


def test_rules_can_be_left_to_the_next_relay(bench: Bench) -> None:
    async def live() -> None:
        room = bench.room()
        await room.open()
        await room.close(terminate=False, leave_rules=True)

    asyncio.run(live())
    assert bench.machine.filter.rules is not None
    assert bench.journal.changes != ()


def test_what_is_known_since_the_launch_is_part_of_the_target(bench: Bench) -> None:
    room = bench.room()
    assert room.target() == bench.spec

    class Launched:
        enclave = EnclaveInfo("wgvsock", "i-05f6ed443a0bcdef0-enc1", 1, 21, "RUNNING", False, 2, 512)  # type: ignore[arg-type]

    room.launcher = Launched()  # type: ignore[assignment]
    assert room.target().attestation.module_id == "i-05f6ed443a0bcdef0-enc1"


def test_a_room_looks_names_up_as_long_as_it_is_open(bench: Bench) -> None:
    bench.spec = replace(bench.spec, dns=DnsSettings())
    bench.machine.resolver_settings = ResolverSettings((ip_address("127.0.0.11"),))

    async def live() -> None:
        room = bench.room()
        await room.open()
        gateways = room.tunnel_config.gateways
        assert room.tunnel_config.nameservers == gateways
        snapshot = room.names.snapshot()
        assert snapshot is not None
        assert snapshot.listen == gateways
        await room.close(terminate=True, leave_rules=False)
        assert room.names.snapshot() is None

    asyncio.run(live())


def test_a_policy_judges_the_names_of_its_room(bench: Bench) -> None:
    allow = (RuleSettings(name="www.lab.test"),)
    bench.spec = replace(bench.spec, dns=DnsSettings(), egress=EgressSettings(default="deny", allow=allow))

    async def live() -> None:
        room = bench.room()
        await room.open()
        assert room.names.snapshot() is not None
        assert room.names.judge is room.uplink.egress
        await room.close(terminate=True, leave_rules=False)

    asyncio.run(live())


def test_a_name_service_that_cannot_be_bound_keeps_the_room_closed(bench: Bench) -> None:
    bench.spec = replace(bench.spec, dns=DnsSettings(forward=True))
    bench.machine.dns.refuses = True

    async def live() -> None:
        room = bench.room()
        with pytest.raises(ListenError):
            await room.open()
        assert not room.is_open
        await room.close(terminate=True, leave_rules=False)

    asyncio.run(live())
    assert bench.machine.filter.tables == {}


def test_a_successor_answers_at_addresses_of_its_own(bench: Bench) -> None:
    bench.spec = replace(bench.spec, dns=DnsSettings(forward=True))

    async def live() -> None:
        one, two = bench.room(), bench.room(bench.spec.successor(1))
        await one.open()
        await two.open()
        listening = [room.names.snapshot() for room in (one, two)]
        assert all(listening)
        first, second = (set(snapshot.listen) for snapshot in listening if snapshot is not None)
        assert first
        assert second
        assert first.isdisjoint(second)
        assert bench.machine.dns.interfaces == {"wg0", "wg1"}
        await one.close(terminate=True, leave_rules=False)
        assert one.names.snapshot() is None
        assert two.names.snapshot() == listening[1]
        await two.close(terminate=True, leave_rules=False)

    asyncio.run(live())


def test_a_room_in_user_space_changes_nothing_and_answers_names_on_loopback(bench: Bench) -> None:
    async def live() -> None:
        room = bench.room(replace(bench.spec, uplink=UplinkSettings("userspace"), dns=DnsSettings(forward=True)))
        await room.open()
        assert bench.machine.tuns == []
        assert bench.machine.filter.rules is None
        assert bench.machine.kernel.forwarding == set()
        assert not room.readiness(attested=True).rules
        forwarder = room.names.snapshot()
        assert forwarder is not None
        assert forwarder.listen == room.tunnel_config.gateways == room.tunnel_config.nameservers
        await room.uplink.open()
        assert room.readiness(attested=True).rules
        (engine,) = bench.machine.engines
        engine.read_orders()
        assert engine.begun is not None
        assert engine.begun.dns_port
        await room.close(terminate=True, leave_rules=False)
        assert engine.status is not None

    asyncio.run(live())
    assert bench.undone == []


def test_in_user_space_the_agent_is_reached_through_the_engine(bench: Bench, tmp_path: Path) -> None:
    async def live() -> None:
        room = bench.room(replace(bench.spec, uplink=UplinkSettings("userspace")))
        await room.open()
        with pytest.raises(ConnectError):
            await room._connect("userspace", bench.spec.enclave.addresses[0].ip, 1, seconds=0.0)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(str(tmp_path / "relay.agent.sock"))
            agent.listen()
            connected = await room._connect("userspace", bench.spec.enclave.addresses[0].ip, 1, seconds=60.0)
            connected.close()
        await room.close(terminate=True, leave_rules=True)

    asyncio.run(live())
