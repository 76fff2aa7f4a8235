"""The application's life, with real processes: start, signals, status, stop."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.enclave import application
from wgvsock.enclave.application import Application
from wgvsock.enclave.errors import ApplicationError


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await test()

    asyncio.run(body())


@pytest.mark.parametrize(("command", "status"), [(["true"], 0), (["sh", "-c", "exit 7"], 7)])
def test_the_status_is_passed_on(command: list[str], status: int) -> None:
    async def body() -> None:
        app = Application(command)
        assert not app.is_running
        app.start()
        assert await app.wait() == status
        assert not app.is_running
        app.forward(signal.SIGTERM)  # to nobody
        await app.stop(1)

    run(body)


def test_a_signal_is_told_as_a_shell_does() -> None:
    async def body() -> None:
        app = Application(["sh", "-c", "kill -KILL $$"])
        app.start()
        assert await app.wait() == 128 + signal.SIGKILL

    run(body)


def test_standard_streams_are_ours(capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        app = Application(["sh", "-c", "echo out; echo err >&2"])
        app.start()
        await app.wait()

    run(body)
    assert capfd.readouterr() == ("out\n", "err\n")


def test_signals_are_forwarded() -> None:
    async def body() -> None:
        app = Application(["sh", "-c", "trap 'exit 9' USR1; echo $$; while :; do sleep 0.01; done"])
        app.start()
        assert app.is_running
        while app.is_running:
            app.forward(signal.SIGUSR1)  # again until the shell has set its trap... the default would end it too
            await asyncio.sleep(0.005)
        assert await app.wait() in {9, 128 + signal.SIGUSR1}

    run(body)


def test_stop_asks_first() -> None:
    async def body() -> None:
        app = Application(["sleep", "600"])
        app.start()
        await app.stop(30)
        assert await app.wait() == 128 + signal.SIGTERM

    run(body)


def test_who_does_not_end_is_killed_with_its_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def body() -> None:
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(reading, readable.set)
        app = Application(["sh", "-c", f"trap '' TERM; exec 3> {fifo}; sleep 600 & echo >&3; wait; wait"])
        app.start()
        await readable.wait()
        assert os.read(reading, 1)
        await app.stop(0.01)
        assert await app.wait() == 128 + signal.SIGKILL
        readable.clear()
        await readable.wait()
        assert os.read(reading, 1) == b""  # nobody of the group is left to hold the pipe
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)

    run(body)
    assert "does not end and is killed" in caplog.text


@pytest.mark.parametrize("command", [["/no/such/program"], ["/etc/passwd"]])
def test_a_program_that_cannot_be_run(command: list[str]) -> None:
    async def body() -> None:
        with pytest.raises(ApplicationError) as caught:
            Application(command).start()
        assert command[0] in caught.value.what

    run(body)


def test_as_process_1_orphans_are_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = [(4242, 0), (77, 3 << 8), (0, 0)]
    asked: list[int] = []

    def waitpid(pid: int, flags: int) -> tuple[int, int]:
        asked.append(pid)
        return ended.pop(0)

    class Child:
        pid = 77
        returncode: int | None = None

    async def body() -> None:
        app = Application(["app"])
        app._reap()  # before the start there is nothing to collect
        app._process = Child()  # type: ignore[assignment]
        app._reap()
        assert await app.wait() == 3

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "waitpid", waitpid)
    run(body)
    assert asked == [-1, -1, -1]


def test_without_libffi_the_application_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def without_ctypes(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ctypes":
            raise ImportError(name)
        return importer(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ctypes)
    assert application._die_with_parent() is None
    monkeypatch.undo()
    assert application._die_with_parent() is not None
