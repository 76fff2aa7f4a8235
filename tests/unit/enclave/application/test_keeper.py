"""The application supervised: started, probed, restarted, stopped, with real processes that end by themselves."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from wgvsock.enclave.application.keeper import Keeper
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings, Probe
from wgvsock.enclave.errors import ApplicationError
from wgvsock.telemetry.reports import Change, Output, Phase


class Kept:
    """A keeper, its ring, and the results of its probe."""

    def __init__(self, *command: str, **settings: Any) -> None:
        self.ring = Ring(1 << 20)
        self.says: list[str | None] = []
        self.asked = asyncio.Event()
        self.keeper = Keeper(
            command,
            ApplicationSettings(**settings),
            stop_timeout=30,
            ring=self.ring,
            clock=time.monotonic,
            wall_clock=lambda: 5_000_000,
            ask=self._ask,
        )

    async def _ask(self, probe: Probe, _settings: ApplicationSettings) -> str | None:
        assert probe.port == 80
        if not self.says:
            self.asked.set()
            await asyncio.get_running_loop().create_future()
        return self.says.pop(0)

    def events(self) -> list[str]:
        return [report.event for report in self.reports() if isinstance(report, Change)]

    def reports(self) -> list[Output | Change]:
        found, cursor = [], 0
        while (report := self.ring.after(cursor)) is not None:
            found.append(report)
            cursor = report.number
        return found

    async def until(self, event: str, count: int = 1) -> None:
        """Wait for the report of an event."""
        changed = asyncio.Event()
        self.ring.on_added = changed.set
        while self.events().count(event) < count:
            changed.clear()
            await changed.wait()


def test_its_status_is_passed_on_and_reported() -> None:
    async def body() -> None:
        kept = Kept("sh", "-c", "exit 3")
        assert kept.keeper.is_running is None
        assert await kept.keeper.run() == 3
        assert kept.keeper.is_running is False
        assert kept.events() == ["started", "exited"]
        last = kept.ring.state
        assert (last.phase, last.code, last.signal, last.starts) == (Phase.ENDED, 3, None, 1)
        first = kept.ring.after(0)
        assert isinstance(first, Change)
        assert first.time_ms == 5

    asyncio.run(body())


def test_a_signal_is_told_as_such() -> None:
    async def body() -> None:
        kept = Kept("sh", "-c", "kill -KILL $$")
        assert await kept.keeper.run() == 137
        assert (kept.ring.state.code, kept.ring.state.signal) == (None, 9)

    asyncio.run(body())


@pytest.mark.parametrize("forward", [True, False])
def test_output_leaves_only_where_the_image_says_so(forward: bool, capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        kept = Kept("echo", "hello", forward_output=forward)
        assert await kept.keeper.run() == 0
        outputs = [report for report in kept.reports() if isinstance(report, Output)]
        assert [output.data for output in outputs] == ([b"hello\n"] if forward else [])
        assert kept.reports()[-1].number == kept.ring.last  # the end is behind what was written before it
        assert isinstance(kept.reports()[-1], Change)

    asyncio.run(body())
    assert capfd.readouterr().out == ("" if forward else "hello\n")


def test_it_is_started_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        kept = Kept("sh", "-c", "exit 1", restart="on-failure")
        monkeypatch.setattr(kept.keeper._restarts, "pause", lambda status, _lived: 0.0 if status == 1 else None)
        running = asyncio.ensure_future(kept.keeper.run())
        await kept.until("exited", 3)
        assert kept.ring.state.starts >= 3
        kept.keeper.stop()
        await running
        assert kept.ring.state.phase is Phase.ENDED

    asyncio.run(body())


def test_stopping_in_the_pause_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        kept = Kept("sh", "-c", "exit 4", restart="always")
        monkeypatch.setattr(kept.keeper._restarts, "pause", lambda *_: 3600.0)
        running = asyncio.ensure_future(kept.keeper.run())
        await kept.until("exited")
        phases = [kept.ring.state.phase]
        kept.keeper.stop()
        assert await running == 0
        assert [*phases, kept.ring.state.phase] == [Phase.RESTARTING, Phase.ENDED]

    asyncio.run(body())


def test_stopping_is_no_reason_to_start_again() -> None:
    async def body() -> None:
        kept = Kept("sleep", "600", restart="always")
        running = asyncio.ensure_future(kept.keeper.run())
        await kept.until("started")
        kept.keeper.stop()
        assert await running == 0
        assert kept.ring.state.signal == signal.SIGTERM

    asyncio.run(body())


def test_signals_reach_it() -> None:
    async def body() -> None:
        kept = Kept("sleep", "600")
        kept.keeper.forward(signal.SIGUSR1)  # to nobody yet
        running = asyncio.ensure_future(kept.keeper.run())
        await kept.until("started")
        kept.keeper.forward(signal.SIGUSR1)
        assert await running == 128 + signal.SIGUSR1

    asyncio.run(body())


def test_readiness_is_reported_when_it_changes() -> None:
    async def body() -> None:
        kept = Kept("sleep", "600", ready="tcp:127.0.0.1:80", ready_interval=0.0)
        assert kept.ring.state.probed
        kept.says = ["Connection refused", "Connection refused", None, None, "no answer"]
        running = asyncio.ensure_future(kept.keeper.run())
        await kept.asked.wait()
        assert kept.events() == ["started", "not_ready", "ready", "not_ready"]
        assert (kept.ring.state.ready, kept.ring.state.why) == (False, "no answer")
        kept.keeper.stop()
        await running
        assert (kept.ring.state.ready, kept.ring.state.why) == (False, "it is not running")

    asyncio.run(body())


def test_one_that_cannot_be_started_is_reported_as_well() -> None:
    async def body() -> None:
        kept = Kept("/no/such/program")
        with pytest.raises(ApplicationError):
            await kept.keeper.run()
        assert kept.events() == ["exited"]
        assert (kept.ring.state.exit_status, kept.ring.state.why) == (127, "No such file or directory")

    asyncio.run(body())
