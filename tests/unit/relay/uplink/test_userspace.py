"""The user-space uplink: closed without an engine, open with one, and its reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest
from scapy.layers.inet import IP, TCP, UDP

from tests.unit.service_pair import ServicePair
from wgvsock.dns.sockets import LoopbackDnsSockets
from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.errors import ConfigurationError
from wgvsock.relay.enclaves.interface import make_tunnel_config
from wgvsock.relay.sections import PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.relay.uplink.userspace import LOOK, TUNNEL_MTU, NewFlows, UserspaceUplink
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing import without_waiting
from wgvsock.testing.engine import MemoryEngine
from wgvsock.testing.machine import MemoryMachine
from wgvsock.uplink.errors import EngineStartError


class Bench:
    """An uplink on a machine in memory."""

    def __init__(self, spec: EnclaveSpec, folder: Path) -> None:
        self.spec = replace(spec, nat=replace(spec.nat, publish=(PublishSettings("tcp", 443, 8443),)))
        self.machine = MemoryMachine()
        self.mouth = Mouth(0, self.machine.monotonic)
        self.agent_socket = folder / "agent.sock"
        self.path = str(self.agent_socket)
        self.subject = UserspaceUplink(
            cast("Any", self.machine.kernel), self.machine, self.mouth, LoopbackDnsSockets(), self.path
        )
        self.told: list[bytes] = []
        self.subject.tell = self.told.append

    @property
    def engine(self) -> MemoryEngine:
        return self.machine.engines[-1]

    async def prepare(self) -> None:
        uplink = await self.subject.find(self.spec)
        self.tunnel = make_tunnel_config(self.spec, uplink, ResolverSettings())
        await self.subject.prepare(self.spec, self.tunnel)

    async def open(self) -> None:
        await self.prepare()
        await self.subject.open()
        self.engine.read_orders()

    def passes(self, destination: str, **fields: Any) -> bool:
        source = str(self.spec.enclave.addresses[0].ip)
        self.mouth.write(memoryview(bytes(IP(src=source, dst=destination) / TCP(flags="S", **fields))))
        try:
            return bool(self.mouth.engine.recv(70_000))
        except BlockingIOError:
            return False


@pytest.fixture
def run(spec: EnclaveSpec, tmp_path: Path) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]:
    def go(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            bench = Bench(spec, tmp_path)
            try:
                await test(bench)
            finally:
                await bench.subject.close()
                bench.mouth.close()

        without_waiting(whole)()

    return go


Run = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]


def test_before_it_is_opened_there_is_no_engine_and_nothing_passes(run: Run) -> None:
    async def test(bench: Bench) -> None:
        assert bench.subject.snapshot() is None
        await bench.prepare()
        assert (bench.machine.engines, bench.subject.is_open, bench.passes("203.0.113.7")) == ([], False, False)
        seen = bench.subject.snapshot()
        assert seen is not None
        assert (seen.backend, seen.is_open, seen.published, seen.mtu) == ("userspace", False, (), TUNNEL_MTU)

    run(test)


def test_when_it_is_open_the_engine_knows_ends_and_ports(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        begun = bench.engine.begun
        assert begun is not None
        assert begun.addresses == tuple(address.ip for address in bench.spec.enclave.addresses)
        assert begun.gateways == bench.tunnel.gateways
        assert begun.max_connections == bench.spec.uplink.max_connections
        assert (begun.reports, begun.report_port) == (bench.path, bench.spec.application.report_port)
        assert bench.subject.is_open
        assert bench.passes("203.0.113.7")
        assert bench.subject.connections() == 2
        seen = bench.subject.snapshot()
        assert seen is not None
        assert seen.engine is not None
        assert seen.published[0] == f"tcp:443->{begun.addresses[0]}:8443"
        await bench.subject.open()
        assert len(bench.machine.engines) == 1, "an attestation that succeeds again changes nothing"

    run(test)


def test_without_an_engine_nothing_is_open(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> MemoryEngine:
        raise OSError(11, "Resource temporarily unavailable")

    async def test(bench: Bench) -> None:
        monkeypatch.setattr(bench.machine, "start_engine", refuse)
        with pytest.raises(EngineStartError):
            await bench.open()
        assert (bench.subject.is_open, bench.mouth.gate) == (False, None)

    run(test)


@pytest.mark.parametrize("how", ["close", "leave", "leave_to_others"])
def test_when_it_is_closed_the_engine_is_gone_with_every_socket(run: Run, how: str) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        bench.agent_socket.touch()
        await getattr(bench.subject, how)()
        assert bench.engine.status is not None
        assert not bench.subject.is_open
        assert not bench.passes("203.0.113.7")
        assert not bench.agent_socket.exists()
        await bench.subject.open()
        assert bench.subject.is_open
        await bench.subject.forgive_interruption()

    run(test)


def test_the_policy_holds_and_is_told(run: Run) -> None:
    async def test(bench: Bench) -> None:
        rule = RuleSettings(name="www.example.com", ports=(443,))
        bench.spec = replace(bench.spec, egress=EgressSettings(default="deny", allow=(rule,)))
        await bench.open()
        address = ip_address("203.0.113.7")
        assert not bench.passes("203.0.113.7", dport=443)
        assert len(bench.told) == 1, "the enclave hears of it at once"
        assert await bench.subject.egress.pin("www.example.com", [(address, 60.0)]) == frozenset()
        assert bench.passes("203.0.113.7", dport=443)
        assert not bench.passes("203.0.113.7", dport=80)
        await bench.subject.keep()
        seen = bench.subject.egress.snapshot()
        assert [(rule.key, rule.flows) for rule in seen.rules] == [("allow 1", 1)]
        assert {(one.address, one.port) for one in seen.denied} == {("203.0.113.7", 443), ("203.0.113.7", 80)}
        assert seen.others == {"default": 2}

    run(test)


def test_so_many_flows_begin_in_a_second(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.spec = replace(bench.spec, egress=EgressSettings(max_new_flows=2))
        await bench.open()
        assert [bench.passes("203.0.113.7", sport=port) for port in (1, 2, 3)] == [True, True, False]
        await asyncio.sleep(1)
        assert bench.passes("203.0.113.7", sport=4)
        assert bench.told == []

    run(test)


def test_a_bucket_of_flows() -> None:
    flows = NewFlows(8)
    assert [flows(100.0) for _ in range(9)][-2:] == [None, "too many new flows"]
    assert flows(100.125) is None
    assert flows(100.125) is not None


def test_a_reload_reaches_gate_and_engine(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        first = bench.engine
        other = replace(bench.spec, egress=EgressSettings(default="deny"), nat=replace(bench.spec.nat, publish=()))
        await bench.subject.adopt(other, bench.tunnel)
        first.read_orders()
        assert first.ports is not None
        assert first.ports.ports == ()
        assert not bench.passes("203.0.113.7")
        await bench.subject.close()
        await bench.subject.adopt(bench.spec, bench.tunnel)
        assert not bench.subject.is_open, "a reload opens nothing"

    run(test)


def test_a_machine_without_a_way_out_is_a_problem_until_it_has_one(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        bench.machine.kernel.defaults = {4: None, 6: None}
        for _ in range(2):
            await bench.subject.keep()
        assert bench.subject.problem is not None
        bench.machine.kernel.defaults = {4: "eth0", 6: "eth0"}
        await bench.subject.keep()
        assert bench.subject.problem is None

    run(test)


def test_another_way_or_other_name_servers_are_told(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        changes: list[None] = []
        task = asyncio.ensure_future(bench.subject.watch(lambda: changes.append(None)))
        await asyncio.sleep(2 * LOOK)
        assert not changes
        bench.machine.resolver_settings = ResolverSettings(servers=(ip_address("10.0.0.53"),))
        await asyncio.sleep(2 * LOOK)
        assert len(changes) == 1
        task.cancel()

    run(test)


def test_a_look_is_taken_when_the_kernel_tells_of_a_change(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        news = asyncio.Event()

        class News:
            async def wait(self, _patience: float) -> bool:
                await news.wait()
                news.clear()
                return False

        bench.machine.notifications = News()
        told = asyncio.Event()
        task = asyncio.ensure_future(bench.subject.watch(told.set))
        bench.machine.resolver_settings = ResolverSettings(servers=(ip_address("10.0.0.53"),))
        await asyncio.sleep(2 * LOOK)
        assert not told.is_set()
        news.set()
        await told.wait()
        task.cancel()

    run(test)


def test_a_prefix_that_is_in_use_here_is_refused(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.machine.kernel.addresses["eth0"] = [bench.spec.enclave.addresses[0]]
        with pytest.raises(ConfigurationError, match="cannot use"):
            await bench.prepare()

    run(test)


def test_a_path_that_is_too_long_for_a_socket_is_left_out(run: Run) -> None:
    async def test(bench: Bench) -> None:
        long = UserspaceUplink(
            cast("Any", bench.machine.kernel), bench.machine, bench.mouth, LoopbackDnsSockets(), "/" + "x" * 107
        )
        await long.find(bench.spec)
        await bench.prepare()
        await long.prepare(bench.spec, bench.tunnel)
        await long.open()
        bench.engine.read_orders()
        assert bench.engine.begun is not None
        assert bench.engine.begun.reports == ""
        await long.close()

    run(test)


def test_datagrams_are_judged_like_everything_else(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.open()
        source = str(bench.spec.enclave.addresses[0].ip)
        bench.mouth.write(memoryview(bytes(IP(src=source, dst="169.254.169.254") / UDP(dport=53))))
        await bench.subject.keep()
        assert [one.protocol for one in bench.subject.egress.snapshot().denied] == ["udp"]

    run(test)


@without_waiting
async def test_packets_of_an_attested_enclave_reach_the_engine_and_none_of_another(pair: ServicePair) -> None:
    """Both services, with real WireGuard and attestation. The engine is the test's."""
    pair.config = replace(pair.config, uplink=UplinkSettings("userspace"))
    packet = bytes(IP(src="10.73.0.2", dst="203.0.113.7") / UDP(dport=9))

    def arrives() -> bool:
        try:
            return pair.machine.engines[-1].packets.recv(70_000).endswith(packet)
        except OSError:
            return False

    pair.set_faults(corrupt_signature=True)
    pair.start_enclave()
    pair.start_relay()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error is not None, "a refusal")
    assert pair.machine.engines == []
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    assert (pair.machine.filter.tables, pair.machine.tuns) == ({}, [])
    (tun,) = pair.enclave_machine.tuns
    tun.inject(bytes(tun.packet_headroom) + packet)
    await pair.until(arrives, "the packet")

    back = bytes(IP(src="203.0.113.7", dst="10.73.0.2") / UDP(sport=9))
    pair.machine.engines[-1].packets.send(back)
    await pair.until(lambda: (tun.take() or b"").endswith(back), "the packet that comes from the world")

    first = pair.machine.engines[-1]
    attested = pair.status()["attestation"]["timestamp"]
    first.die()
    await pair.until(lambda: len(pair.machine.engines) == 2 and pair.is_ready(), "another engine")
    assert pair.status()["attestation"]["timestamp"] == attested
    tun.inject(bytes(tun.packet_headroom) + packet)
    await pair.until(arrives, "the packet by the new engine")

    pair.set_faults(pcrs={0: bytes([1]) * 48})
    pair.attendant.reattest()
    await pair.until(lambda: pair.machine.engines[-1].status is not None, "the engine to be gone")
    assert not pair.is_ready()
    await pair.down()


def test_ipv6_needs_no_forwarding(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.machine.kernel.barred = ("net.ipv6.conf.all.forwarding",)
        uplink = await bench.subject.find(bench.spec)
        assert uplink.versions == {4, 6}
        assert not uplink.unset_sysctls

    run(test)
