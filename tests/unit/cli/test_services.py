"""A service in the foreground, with real signals."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.errors import SystemSetupError
from wgvsock.runtime import event_loop, process

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """Restore the collector and the signal handlers afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    gc.unfreeze()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_reaches_its_handler_alone(number: signal.Signals) -> None:
    seen: list[signal.Signals] = []

    def start() -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
        arrived = asyncio.Event()

        def note(received: signal.Signals) -> None:
            seen.append(received)
            arrived.set()

        async def serve() -> int:
            signal.raise_signal(number)
            await arrived.wait()
            return 17

        return serve(), {known: lambda known=known: note(known) for known in SIGNALS}

    assert run_service(start) == 17
    assert seen == [number]
    assert {signal.getsignal(known) for known in SIGNALS} == {signal.SIG_DFL, signal.default_int_handler}


def test_the_service_is_made_inside_the_loop_and_spares_the_collector() -> None:
    frozen = gc.get_freeze_count()

    def start() -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
        loop = asyncio.get_running_loop()

        async def serve() -> int:
            assert asyncio.get_running_loop() is loop
            return int(gc.get_freeze_count() > frozen)

        return serve(), {}

    assert run_service(start) == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_came_before_there_was_a_handler_is_heeded(number: signal.Signals) -> None:
    seen: list[signal.Signals] = []

    def start() -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
        arrived = asyncio.Event()
        signal.raise_signal(number)  # to this thread: a starting service has no other, a worker of pytest-xdist does

        def note(received: signal.Signals) -> None:
            seen.append(received)
            arrived.set()

        async def serve() -> int:
            await arrived.wait()
            return 17

        return serve(), {known: lambda known=known: note(known) for known in SIGNALS}

    process.hold_signals()
    assert run_service(start) == 17
    assert seen == [number]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(("pid", "collects"), [(1, True), (4711, False)])
def test_process_1_collects_orphans(monkeypatch: pytest.MonkeyPatch, pid: int, collects: bool) -> None:
    monkeypatch.setattr(os, "getpid", lambda: pid)
    looked: list[str] = []
    monkeypatch.setattr(event_loop.EventLoop, "reap_orphans", lambda _: looked.append("looked"))

    def start() -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
        arrived = asyncio.Event()

        async def serve() -> int:
            before = len(looked)
            signal.raise_signal(signal.SIGCHLD)
            signal.raise_signal(signal.SIGUSR1)  # it comes behind the other
            await arrived.wait()
            return len(looked) - before

        return serve(), {signal.SIGUSR1: arrived.set}

    assert run_service(start) == int(collects)
    assert bool(looked) == collects


def test_its_error_is_raised() -> None:
    async def serve() -> int:
        raise SystemSetupError("no")

    with pytest.raises(SystemSetupError):
        run_service(lambda: (serve(), {}))


def test_an_error_before_it_starts() -> None:
    def start() -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
        raise SystemSetupError("no")

    with pytest.raises(SystemSetupError):
        run_service(start)
