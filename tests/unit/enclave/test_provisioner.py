"""The provisioning port: exchanges over real Unix sockets in the test's folder."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from wgvsock.addresses import UnixAddress
from wgvsock.enclave import provisioner
from wgvsock.enclave.provisioner import MAX_CONNECTIONS, ProvisioningServer
from wgvsock.provisioning import EnclaveProvisioning, ExchangeEnded
from wgvsock.testing import SeededRandom, without_waiting


class Port:
    """A server, the machine behind it, and the events that were carried out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Any] = []
        self.fails = False
        self.machine = EnclaveProvisioning(random=SeededRandom("port"))
        self.server = ProvisioningServer(
            UnixAddress(str(path)), self.machine, self.work, clock=asyncio.get_running_loop().time
        )

    async def work(self, event: Any) -> None:
        if self.fails:
            raise ValueError("the test says so")
        self.events.append(event)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return sock


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Port]:
    port = Port(tmp_path / "p")
    task = asyncio.ensure_future(port.server.serve())
    try:
        yield port
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, ValueError):
            await task


async def read(sock: socket.socket) -> bytes:
    """What arrives up to the end of the stream, or up to a frame's end when nothing more comes."""
    loop = asyncio.get_running_loop()
    return await loop.sock_recv(sock, 65536)


@without_waiting
async def test_a_connection_begins_with_hello(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            hello = await read(relay)
            assert len(hello) == 4 + int.from_bytes(hello[:4], "big")


@without_waiting
async def test_garbage_is_answered_and_ends_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            await read(relay)
            relay.send(b"\xff" * 4)
            assert (await read(relay))[4:]  # ERROR
            assert await read(relay) == b""
        await asyncio.sleep(0.1)
        (event,) = port.events
        assert isinstance(event, ExchangeEnded)


@without_waiting
async def test_the_relay_goes_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        port.connect().close()
        await asyncio.sleep(0.1)
        assert isinstance(port.events[0], ExchangeEnded)
        assert not port.server._connections


@without_waiting
async def test_a_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as port:
        relay = port.connect()
        await asyncio.sleep(0.1)
        (connection,) = port.server._connections
        ours = connection._socket

        class Broken:
            def recv(self, size: int) -> bytes:
                raise ConnectionResetError

            def __getattr__(self, name: str) -> Any:
                return getattr(ours, name)

        monkeypatch.setattr(connection, "_socket", Broken())
        connection._readable()
        await asyncio.sleep(0.1)
        assert isinstance(port.events[0], ExchangeEnded)
        relay.close()


@without_waiting
async def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            await read(relay)
            began = asyncio.get_running_loop().time()
            assert (await read(relay))[4:]  # ERROR
            assert asyncio.get_running_loop().time() - began == pytest.approx(port.machine.deadlines.frame, abs=0.2)


@without_waiting
async def test_two_at_a_time_are_one_too_many(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as first, port.connect() as second:
            assert len(await read(first)) > 64  # HELLO
            assert len(await read(second)) < 64  # ERROR: busy
            assert await read(second) == b""


@without_waiting
async def test_no_more_connections_than_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as port:
        await asyncio.sleep(0.1)
        holder: Any = object()
        port.server._connections = {*(type("Held", (), {"flush": lambda self: None, "close": lambda self: None})()
                                      for _ in range(MAX_CONNECTIONS)), holder} - {holder}  # fmt: skip
        with port.connect() as relay:
            assert await read(relay) == b""
        assert "too many are open" in caplog.text
        port.server._connections.clear()


@without_waiting
async def test_what_the_kernel_does_not_take_at_once_follows(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            await read(relay)
            (connection,) = port.server._connections
            exchange = connection._exchange
            long = bytes(4_000_000)
            chunks = [long]
            exchange.data_to_send = lambda: chunks.pop() if chunks else b""  # type: ignore[method-assign]
            port.server.settle()
            got = 0
            while got < len(long):
                got += len(await read(relay))
            assert got == len(long)


@without_waiting
async def test_a_connection_that_breaks_while_sending(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        relay = port.connect()
        await asyncio.sleep(0.1)
        relay.close()
        (connection,) = port.server._connections
        connection._exchange.data_to_send = lambda: b"x"  # type: ignore[method-assign]
        connection.flush()
        assert not port.server._connections


@without_waiting
async def test_nothing_to_read_is_no_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect():
            await asyncio.sleep(0.1)
            (connection,) = port.server._connections
            connection._readable()
            assert port.server._connections


@without_waiting
async def test_an_event_that_cannot_be_carried_out_ends_the_server(tmp_path: Path) -> None:
    port = Port(tmp_path / "p")
    port.fails = True
    task = asyncio.ensure_future(port.server.serve())
    await asyncio.sleep(0.1)
    port.connect().close()
    with pytest.raises(ValueError, match="the test says so"):
        await task


@without_waiting
async def test_stopping_closes_everything(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        relay = port.connect()
        await read(relay)
    assert await read(relay) == b""
    relay.close()
    with pytest.raises(ConnectionRefusedError):
        port.connect()


def test_the_longest_message_fits_into_one_read() -> None:
    assert provisioner._CHUNK >= 16_384


@without_waiting
async def test_a_client_that_never_takes_its_answer_loses_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over vsock anybody on the parent can grant no room to send; the relay would be refused for ever."""
    accepted: list[tuple[socket.socket, socket.socket]] = []

    async def accept_without_room(*_: Any, **__: Any) -> tuple[socket.socket, UnixAddress]:
        if len(accepted) == MAX_CONNECTIONS:
            await asyncio.Event().wait()
        near, far = socket.socketpair()
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(4096))
        accepted.append((near, far))
        return near, UnixAddress("-")

    monkeypatch.setattr(provisioner, "accept_stream", accept_without_room)
    async with serving(tmp_path) as port:
        await asyncio.sleep(port.machine.deadlines.exchange)
        assert len(accepted) == MAX_CONNECTIONS
        await asyncio.sleep(provisioner.LAST_WORD_TIMEOUT)
        assert [near.fileno() for near, _ in accepted] == [-1] * MAX_CONNECTIONS
    for _, far in accepted:
        far.close()
