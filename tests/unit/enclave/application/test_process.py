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

from wgvsock.enclave.application import process
from wgvsock.enclave.application.process import ApplicationProcess, identity, shell_status
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.errors import ApplicationError
from wgvsock.telemetry.reports import StreamName


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await test()

    asyncio.run(body())


@pytest.mark.parametrize(("command", "status"), [(["true"], 0), (["sh", "-c", "exit 7"], 7)])
def test_the_status_is_passed_on(command: list[str], status: int) -> None:
    async def body() -> None:
        app = ApplicationProcess(command)
        assert not app.is_running
        await app.start()
        assert await app.wait() == status
        assert not app.is_running
        app.forward(signal.SIGTERM)  # to nobody
        await app.stop(1)

    run(body)


def test_a_signal_is_told_as_a_shell_does() -> None:
    async def body() -> None:
        app = ApplicationProcess(["sh", "-c", "kill -KILL $$"])
        await app.start()
        assert await app.wait() == -signal.SIGKILL
        assert shell_status(await app.wait()) == 128 + signal.SIGKILL

    run(body)


def test_standard_streams_are_ours(capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        app = ApplicationProcess(["sh", "-c", "echo out; echo err >&2"])
        await app.start()
        await app.wait()

    run(body)
    assert capfd.readouterr() == ("out\n", "err\n")


def test_signals_are_forwarded() -> None:
    async def body() -> None:
        app = ApplicationProcess(["sh", "-c", "trap 'exit 9' USR1; echo $$; while :; do sleep 0.01; done"])
        await app.start()
        assert app.is_running
        while app.is_running:
            app.forward(signal.SIGUSR1)  # again until the shell has set its trap... the default would end it too
            await asyncio.sleep(0.005)
        assert await app.wait() in {9, -signal.SIGUSR1}

    run(body)


def test_stop_asks_first() -> None:
    async def body() -> None:
        app = ApplicationProcess(["sleep", "600"])
        await app.start()
        await app.stop(30)
        assert await app.wait() == -signal.SIGTERM

    run(body)


def test_who_does_not_end_is_killed_with_its_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def body() -> None:
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(reading, readable.set)
        app = ApplicationProcess(["sh", "-c", f"trap '' TERM; exec 3> {fifo}; sleep 600 & echo >&3; wait; wait"])
        await app.start()
        await readable.wait()
        assert os.read(reading, 1)
        await app.stop(0.01)
        assert await app.wait() == -signal.SIGKILL
        readable.clear()
        await readable.wait()
        assert os.read(reading, 1) == b""  # nobody of the group is left to hold the pipe
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)

    run(body)
    assert "did not end in time and is killed" in caplog.text


@pytest.mark.parametrize("command", [["/no/such/program"], ["/etc/passwd"]])
def test_a_program_that_cannot_be_run(command: list[str]) -> None:
    async def body() -> None:
        with pytest.raises(ApplicationError) as caught:
            await ApplicationProcess(command).start()
        assert command[0] in caught.value.what

    run(body)


def test_without_libffi_the_application_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def without_ctypes(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ctypes":
            raise ImportError(name)
        return importer(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ctypes)
    assert process.die_with_parent() is None
    monkeypatch.undo()
    assert process.die_with_parent() is not None


def descriptors() -> int:
    """The number in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_it_writes_goes_to_the_sink_with_the_rest_after_its_end() -> None:
    written: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def sink(stream: StreamName, data: bytes) -> None:
        written[stream] += data

    async def body() -> None:
        app = ApplicationProcess(["sh", "-c", "echo out; echo err >&2; printf rest"], sink=sink)
        await app.start()
        await app.wait()

    run(body)
    assert written == {"stdout": b"out\nrest", "stderr": b"err\n"}


def test_environment_directory_and_user(tmp_path: Path) -> None:
    written = bytearray()
    tmp_path.chmod(0o777)
    settings = ApplicationSettings(env=("WORD=a=b",), working_directory="/usr", user="65534:65533")

    async def body() -> None:
        command = ["sh", "-c", "echo $WORD $PWD $(id -u) $(id -G)"]
        app = ApplicationProcess(command, settings, lambda _stream, data: written.extend(data))
        await app.start()
        assert await app.wait() == 0

    if os.getuid():
        pytest.skip("only root becomes somebody else")
    run(body)
    assert written == b"a=b /usr 65534 65533\n"


def test_users_by_name_and_by_number() -> None:
    assert identity(None) == {}
    assert identity("1234") == {"user": 1234, "group": 1234, "extra_groups": []}
    assert identity("1234:5") == {"user": 1234, "group": 5, "extra_groups": []}
    assert identity("root:root") == {"user": 0, "group": 0, "extra_groups": []}
    named = identity("root")
    assert (named["user"], named["group"]) == (0, 0)


def test_a_user_that_does_not_exist_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        before = descriptors()
        with pytest.raises(ApplicationError, match="nobody-here"):
            await ApplicationProcess(["true"], ApplicationSettings(user="nobody-here"), lambda *_: None).start()
        assert descriptors() == before

    run(body)
