from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from wgvsock.uapi import server as server_module
from wgvsock.uapi.errors import ControlSocketError, UapiError
from wgvsock.uapi.protocol import DeviceChange, DeviceState
from wgvsock.uapi.server import UapiServer, open_control_socket, socket_path


class FakeControl:
    """Records changes, refuses fwmark 13, and holds fwmark 99 back until `release` is set."""

    def __init__(self) -> None:
        self.changes: list[DeviceChange] = []
        self.release = asyncio.Event()
        self.held = asyncio.Event()

    async def state(self) -> DeviceState:
        return DeviceState(None, 51820, 0, ())

    async def apply(self, change: DeviceChange) -> None:
        if change.fwmark == 99:
            self.held.set()
            await self.release.wait()
        if change.fwmark == 13:
            raise UapiError(errno.EADDRINUSE, "the mark is unlucky")
        self.changes.append(change)


class Served:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = FakeControl()
        self.server = UapiServer(self.control, open_control_socket(path), path)
        self.task = asyncio.create_task(self.server.serve())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: TID251  # no data plane
        return await asyncio.open_unix_connection(self.path)

    async def ask(self, request: bytes) -> bytes:
        """Send one request on a separate connection. Returns everything the server sends until it closes."""
        reader, writer = await self.connect()
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Served]:
    served = Served(path)
    try:
        yield served
    finally:
        served.task.cancel()
        await asyncio.wait({served.task})


def with_server(test: Callable[[Served], Awaitable[None]]) -> Callable[[Path], Awaitable[None]]:
    @pytest.mark.asyncio
    async def run(tmp_path: Path) -> None:
        async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
            await test(served)

    run.__name__ = test.__name__
    return run


@with_server
async def test_get(served: Served) -> None:
    assert await served.ask(b"get=1\n\n") == b"listen_port=51820\nerrno=0\n\n"


@with_server
async def test_set(served: Served) -> None:
    assert await served.ask(b"set=1\nfwmark=5\n\n") == b"errno=0\n\n"
    assert served.control.changes == [DeviceChange(fwmark=5)]


@with_server
async def test_a_refusal_is_a_negative_number(served: Served) -> None:
    assert await served.ask(b"set=1\nfwmark=13\n\n") == b"errno=-98\n\n"
    assert await served.ask(b"set=1\nfwmark=x\n\n") == b"errno=-22\n\n"
    assert served.control.changes == []


@with_server
async def test_a_connection_carries_many_requests(served: Served) -> None:
    reader, writer = await served.connect()
    for _ in range(3):
        writer.write(b"set=1\nfwmark=1\n\nget=1\n\n")
        assert await reader.readexactly(9 + 27) == b"errno=0\n\nlisten_port=51820\nerrno=0\n\n"
    writer.close()
    await writer.wait_closed()


@with_server
async def test_a_client_that_says_nothing_is_no_event(served: Served) -> None:
    assert await served.ask(b"") == b""
    assert await served.ask(b"get=1\n\n") != b""


@with_server
async def test_a_client_that_speaks_something_else_is_cut_off(served: Served) -> None:
    assert await served.ask(b"hello\n") == b""
    assert await served.ask(b"get=1\n\n") != b""


@with_server
async def test_a_client_that_goes_away_disturbs_nobody(served: Served) -> None:
    _, writer = await served.connect()
    writer.write(b"set=1\nfwmark=99\n\n")
    await served.control.held.wait()
    writer.transport.abort()
    served.control.release.set()
    assert await served.ask(b"get=1\n\n") != b""


@with_server
async def test_set_requests_take_effect_one_after_another_and_get_sees_no_half_of_one(served: Served) -> None:
    slow = asyncio.create_task(served.ask(b"set=1\nfwmark=99\n\n"))
    await served.control.held.wait()
    second = asyncio.create_task(served.ask(b"set=1\nfwmark=2\n\n"))
    third = asyncio.create_task(served.ask(b"get=1\n\n"))
    assert await served.ask(b"set=1\nnonsense\n\n") == b"errno=-71\n\n"
    assert served.control.changes == []
    assert not third.done()
    served.control.release.set()
    assert (await slow, await second) == (b"errno=0\n\n", b"errno=0\n\n")
    assert (await third).endswith(b"errno=0\n\n")
    assert [change.fwmark for change in served.control.changes] == [99, 2]


@pytest.mark.asyncio
async def test_a_slow_request_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.01)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        reader, writer = await served.connect()
        writer.write(b"set=1\nfwmark=")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.asyncio
async def test_an_idle_connection_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_TIMEOUT", 0.01)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        reader, writer = await served.connect()
        assert await reader.read() == b""
        writer.close()


@pytest.mark.asyncio
async def test_a_client_that_never_reads_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.01)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(served.path))
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await loop.sock_sendall(client, b"get=1\n\n" * 1_000_000)
        assert await served.ask(b"get=1\n\n") != b""


@pytest.mark.asyncio
async def test_one_client_too_many_takes_the_place_of_the_one_that_is_silent_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 half-open clients kept `wg show` waiting for 3.3 s."""
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 3)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        monitor, silent, slow = await served.connect(), await served.connect(), await served.connect()
        monitor[1].write(b"get=1\n\n")
        await monitor[0].readuntil(b"errno=0\n\n")
        slow[1].write(b"set=1\n")
        assert await served.ask(b"get=1\n\n") != b""
        assert await silent[0].read() == b"", "sent away"
        late = await served.connect()
        assert await served.ask(b"get=1\n\n") != b""
        assert await slow[0].read() == b"", "sent away"
        monitor[1].write(b"get=1\n\n")
        await monitor[0].readuntil(b"errno=0\n\n")
        for _, writer in (monitor, silent, slow, late):
            writer.close()


@pytest.mark.asyncio
async def test_many_connections_at_once_leave_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
        with contextlib.ExitStack() as opened:
            clients = [opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(20)]
            for client in clients:
                client.connect(str(served.path))
            assert await served.ask(b"get=1\n\n") != b""
            for client in clients[:-2]:
                client.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


@pytest.mark.asyncio
async def test_a_client_whose_change_is_being_carried_out_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 1)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        changing = asyncio.create_task(served.ask(b"set=1\nfwmark=99\n\n"))
        await served.control.held.wait()
        newcomer = asyncio.create_task(served.ask(b"get=1\n\n"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not newcomer.done()
        served.control.release.set()
        assert await newcomer != b""
        await changing
        assert [change.fwmark for change in served.control.changes] == [99]


@pytest.mark.asyncio
async def test_a_lack_of_descriptors_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_ACCEPT_PAUSE", 0)
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    async def failing_accept(listener: socket.socket) -> tuple[socket.socket, object]:
        for failure in failures:
            raise failure
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", failing_accept)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        assert await served.ask(b"get=1\n\n") != b""


@pytest.mark.asyncio
async def test_it_ends_when_the_socket_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WATCH_INTERVAL", 0.01)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        assert await served.ask(b"get=1\n\n") != b""
        served.path.unlink()
        await served.task


@pytest.mark.asyncio
async def test_it_leaves_another_s_socket_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WATCH_INTERVAL", 0.01)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        served.path.rename(tmp_path / "kept.sock")  # the inode stays taken, so that the next one is another
        open_control_socket(served.path).close()
        await served.task
        assert served.path.exists()


@pytest.mark.asyncio
async def test_cancelled_it_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "wg0.sock") as served:
        _, writer = await served.connect()
        assert await served.ask(b"get=1\n\n") != b""
    assert not served.path.exists()
    writer.close()


@pytest.mark.asyncio
async def test_a_bug_in_the_control_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeControl, "state", lambda _: 1 // 0)
    async with asyncio.timeout(10), serving(tmp_path / "wg0.sock") as served:
        assert await served.ask(b"get=1\n\n") == b""
        with pytest.raises(ExceptionGroup):
            await served.task


def test_where_wg_looks() -> None:
    assert str(socket_path("wg0")) == "/var/run/wireguard/wg0.sock"


def test_the_socket_is_root_s_alone_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "wireguard" / "wg0.sock"
    with open_control_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_socket_appears_only_once_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wg` removes a socket that refuses it, which would tell the device to end."""
    path = tmp_path / "wg0.sock"
    seen: list[list[str]] = []

    class Watched(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            seen.append([file.name for file in tmp_path.iterdir() if file.name.endswith(".sock")])
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    with open_control_socket(path):
        assert seen == [[]]
        assert [file.name for file in tmp_path.iterdir()] == ["wg0.sock"]


def test_a_failure_leaves_no_unfinished_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ControlSocketError, match="Permission denied"):
        open_control_socket(tmp_path / "wg0.sock")
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "wg0.sock"
    open_control_socket(path).close()
    with open_control_socket(path):
        assert path.exists()


def test_a_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "wg0.sock"
    with open_control_socket(path), pytest.raises(ControlSocketError, match="Address already in use"):
        open_control_socket(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "wg0.sock"
    path.write_text("precious")
    with pytest.raises(ControlSocketError, match="Address already in use"):
        open_control_socket(path)
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError):
        open_control_socket(tmp_path / ("x" * 200))
