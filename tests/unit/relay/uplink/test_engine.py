"""The engine's process: started, configured, restarted, ended."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

import pytest

from wgvsock.relay.uplink.engine import START_SECONDS, EngineProcess
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.testing import without_waiting
from wgvsock.testing.engine import MemoryEngine
from wgvsock.testing.machine import MemoryMachine
from wgvsock.uplink.errors import EngineStartError, PortError
from wgvsock.uplink.orders import Begin, Port, Publish, Report

BEGIN = Begin((ip_address("10.73.0.2"),), (ip_address("10.73.0.1"),), 64)
PORTS = (Port("tcp", 443, ip_address("10.73.0.2"), 8443),)


class Bench:
    """An engine's process on a machine in memory."""

    def __init__(self) -> None:
        self.machine = MemoryMachine()
        self.mouth = Mouth(0, lambda: 0.0)
        self.drained = 0
        self.subject = EngineProcess(self.machine, self.mouth.engine, self._drain, lambda: 0.0)

    def _drain(self) -> None:
        self.drained += 1

    @property
    def engine(self) -> MemoryEngine:
        return self.machine.engines[-1]

    async def start(self) -> None:
        await self.subject.start(BEGIN, Publish(PORTS))
        self.engine.read_orders()


def run(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        try:
            await test(bench)
        finally:
            await bench.subject.stop()
            bench.mouth.close()

    without_waiting(whole)()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_it_works_once_it_has_reported_and_is_told_everything() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        assert bench.subject.is_running
        assert bench.subject.problem is None
        assert (bench.engine.begun, bench.engine.ports) == (BEGIN, Publish(PORTS))
        seen = bench.subject.snapshot(64)
        assert (seen.running, seen.pid, seen.version, seen.restarts) == (True, 4711, "4.7.0", 0)
        assert (seen.connections, seen.max_connections) == (3, 64)

    run(test)


def test_it_is_ended_with_every_socket() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        engine = bench.engine
        await bench.subject.stop()
        assert engine.status is not None
        assert not bench.subject.is_running
        await bench.subject.stop()

    run(test)


def test_one_that_is_to_finish_tells_both_ends_of_its_connections_and_is_not_followed() -> None:
    async def test(bench: Bench) -> None:
        await bench.subject.finish()  # there is none
        await bench.start()
        finishing = asyncio.ensure_future(bench.subject.finish())
        await settle()
        bench.engine.read_orders()
        assert bench.engine.is_to_end
        assert not finishing.done()
        bench.engine.die(0)
        await finishing
        assert not bench.subject.is_running
        assert (len(bench.machine.engines), bench.subject.restarts) == (1, 0)

    run(test)


def test_one_that_does_not_finish_is_ended() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.subject.finish()
        assert bench.engine.status is not None
        await bench.start()
        assert bench.subject.is_running

    run(test)


def test_to_start_what_runs_tells_it_its_ports() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        for draining in (True, False):
            await bench.subject.start(BEGIN, Publish(draining=draining))
            bench.engine.read_orders()
            assert len(bench.machine.engines) == 1
            assert bench.engine.ports == Publish(draining=draining)

    run(test)


def test_other_orders_take_another_engine() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.subject.start(Begin(BEGIN.addresses, BEGIN.gateways, 128), Publish(PORTS))
        assert [engine.status is None for engine in bench.machine.engines] == [False, True]

    run(test)


def test_one_that_dies_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        bench.engine.die()
        await settle()
        assert not bench.subject.is_running
        assert isinstance(bench.subject.problem, EngineStartError)
        await asyncio.sleep(0.5)
        bench.engine.read_orders()
        seen = bench.subject.snapshot(64)
        assert (seen.running, seen.restarts) == (True, 1)
        assert (bench.engine.begun, bench.engine.ports) == (BEGIN, Publish(PORTS))
        assert bench.drained == 2, "the new one knows nothing of what is on its way"

    run(test)
    assert caplog.text.count("the uplink's engine has ended") == 1


def test_one_that_dies_again_and_again_is_started_less_often() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        for _ in range(12):
            bench.engine.die()
            await asyncio.sleep(6)
        assert bench.subject.restarts == 12
        bench.engine.die()
        await asyncio.sleep(1)
        assert not bench.subject.is_running
        await asyncio.sleep(60)
        bench.engine.die()
        await settle()
        await asyncio.sleep(0)
        await settle()
        assert bench.subject.is_running, "it was steady meanwhile"

    run(test)


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> MemoryEngine:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    async def test(bench: Bench) -> None:
        monkeypatch.setattr(bench.machine, "start_engine", refuse)
        with pytest.raises(EngineStartError, match="temporarily unavailable"):
            await bench.start()
        assert not bench.subject.is_running

    run(test)


def test_one_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryEngine, "report", lambda _: None)

    async def test(bench: Bench) -> None:
        begin = bench.machine.monotonic()
        with pytest.raises(EngineStartError, match="not reported in time"):
            await bench.start()
        assert bench.machine.monotonic() - begin == START_SECONDS
        assert bench.engine.status is not None

    run(test)


def test_a_port_that_cannot_be_bound_is_a_problem_until_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        for _ in range(2):
            bench.engine.report(Report("4.7.0", failed={str(PORTS[0]): errno.EACCES, "tcp:1->10.0.0.1:1": 13}))
            await settle()
        problem = bench.subject.problem
        assert isinstance(problem, PortError)
        assert "ip_unprivileged_port_start" in problem.fix
        bench.engine.report(Report("4.7.0", failed={str(PORTS[0]): errno.EADDRINUSE}))
        await settle()
        assert "stop what else" in (bench.subject.problem or problem).fix
        bench.engine.report()
        await settle()
        assert bench.subject.problem is None

    run(test)
    assert caplog.text.count("cannot publish") == 1


def test_one_that_is_not_itself_any_more_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        first = bench.engine
        first.report(b"\x1b[2J")
        await settle()
        assert first.status is not None
        await asyncio.sleep(0.5)
        assert bench.subject.is_running
        assert bench.subject.restarts == 1

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "\x1b" not in caplog.text


def test_one_that_reads_no_orders_is_ended() -> None:
    async def test(bench: Bench) -> None:
        await bench.start()
        first = bench.engine
        many = tuple(Port("tcp", port, ip_address("10.73.0.2"), port) for port in range(1, 1000))
        for number in range(100):
            bench.subject.publish(Publish(many[number:]))
            if first.status is not None:
                break
        assert first.status is not None

    run(test)
