from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lab.qemu import forward as forward_module
from lab.qemu.forward import forward
from wgvsock.addresses import Cid, UnixAddress
from wgvsock.errors import TransportError

UPSTREAM = UnixAddress("/upstream")


class Dialled:
    """One forwarded connection: `guest` and `server` are its outer ends."""

    def __init__(self) -> None:
        self.guest, self.accepted = socket.socketpair()
        self.server, self.dialled = socket.socketpair()
        for sock in (self.guest, self.accepted, self.server, self.dialled):
            sock.setblocking(False)


@contextlib.asynccontextmanager
async def forwarding(monkeypatch: pytest.MonkeyPatch, *, reachable: bool = True) -> AsyncIterator[Dialled]:
    connection = Dialled()
    peers: list[frozenset[Cid]] = []

    class Accepts:
        """Instead of `Listener`: one connection has arrived."""

        def __init__(self, _sock: object, allowed_cids: frozenset[Cid], on_accepted: Callable[..., None]) -> None:
            peers.append(allowed_cids)
            on_accepted(connection.accepted, UPSTREAM)

        def close(self) -> None: ...

    async def connect(address: object, *, deadline: float) -> socket.socket:
        assert address == UPSTREAM
        if not reachable:
            raise TransportError("nobody listens")
        return connection.dialled

    monkeypatch.setattr(forward_module, "Listener", Accepts)
    monkeypatch.setattr(forward_module, "connect_stream", connect)
    with socket.socket(socket.AF_UNIX) as listener:
        task = asyncio.create_task(forward(listener, Cid(70_000), UPSTREAM))
        try:
            yield connection
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            connection.guest.close()
            connection.server.close()
            await asyncio.sleep(0)
            connection.accepted.close()
            connection.dialled.close()
    assert set(peers) == {frozenset({Cid(70_000)})}


async def receive(sock: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, 100)


@pytest.mark.asyncio
async def test_bytes_pass_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    async with forwarding(monkeypatch) as connection:
        connection.guest.send(b"question")
        assert await receive(connection.server) == b"question"
        connection.server.send(b"answer")
        assert await receive(connection.guest) == b"answer"


@pytest.mark.asyncio
@pytest.mark.parametrize(("one", "other"), [("guest", "server"), ("server", "guest")])
async def test_an_end_that_goes_takes_the_other_with_it(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    async with forwarding(monkeypatch) as connection:
        getattr(connection, one).close()
        assert await receive(getattr(connection, other)) == b""


@pytest.mark.asyncio
async def test_a_dial_that_leads_nowhere_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with forwarding(monkeypatch, reachable=False) as connection:
        assert await receive(connection.guest) == b""


def test_the_command_listens_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[object] = []

    async def forward_to(listener: socket.socket, peer: Cid, upstream: object) -> None:
        told.extend((listener.getsockname(), peer, upstream))
        listener.close()

    monkeypatch.setattr(forward_module, "forward", forward_to)
    path = str(tmp_path / "in")
    assert forward_module.main(["--peer", "7", f"unix:{path}", "unix:/upstream"]) == 0
    assert told == [path, 7, UPSTREAM]
