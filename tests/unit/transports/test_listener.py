import asyncio
import errno
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from wgvsock.addresses import Cid, StreamAddress, UnixAddress
from wgvsock.testing import without_waiting
from wgvsock.transports import listener as listener_module
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import DESCRIPTOR_PAUSE, accept_now, connect_stream, listen_stream


async def dial(address: StreamAddress) -> socket.socket:
    return await connect_stream(address, deadline=asyncio.get_running_loop().time() + 5)


def test_every_connection_is_handed_over_one_a_turn(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        accepted: list[tuple[socket.socket, StreamAddress]] = []
        listener = Listener(listen_stream(address), None, lambda sock, remote: accepted.append((sock, remote)))
        dialled = [await dial(address) for _ in range(3)]
        counts = []
        for _ in range(6):
            await asyncio.sleep(0)
            counts.append(len(accepted))
        assert counts[-1] == 3
        assert all(b - a <= 1 for a, b in pairwise(counts))
        assert {remote for _, remote in accepted} == {address}
        listener.close()
        for sock in (*dialled, *(sock for sock, _ in accepted)):
            sock.close()

    scenario()


def test_running_out_of_descriptors_pauses_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def failing(sock: socket.socket, *, allowed_cids: frozenset[Cid] | None) -> object:
        if failures:
            raise failures.pop()
        return accept_now(sock, allowed_cids=allowed_cids)

    monkeypatch.setattr(listener_module, "accept_now", failing)

    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        accepted: list[socket.socket] = []
        listener = Listener(listen_stream(address), None, lambda sock, _: accepted.append(sock))
        dialled = await dial(address)
        await asyncio.sleep(DESCRIPTOR_PAUSE / 2)
        assert accepted == []
        await asyncio.sleep(DESCRIPTOR_PAUSE)
        assert len(accepted) == 1
        listener.close()
        dialled.close()
        accepted[0].close()

    scenario()
    assert caplog.messages == ["cannot accept a connection: Too many open files"]


def test_closing_during_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(listener_module, "accept_now", failing)

    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        listener = Listener(listen_stream(address), None, lambda *_: None)
        with await dial(address):
            await asyncio.sleep(0.1)
            listener.close()
            await asyncio.sleep(DESCRIPTOR_PAUSE * 2)

    scenario()


def test_a_connection_that_is_not_taken_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passing_over(sock: socket.socket, **_: object) -> None:
        sock.accept()[0].close()

    monkeypatch.setattr(listener_module, "accept_now", passing_over)

    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        listener = Listener(listen_stream(address), frozenset({Cid(3)}), lambda *_: pytest.fail("handed over"))
        with await dial(address):
            await asyncio.sleep(0.1)
        listener.close()

    scenario()


def test_closing_takes_the_socket_file_away_unless_another_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "s"
    present, delete = file.exists, file.unlink

    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(file))
        listener = Listener(listen_stream(address), None, lambda *_: None)
        listener.close()
        assert not present()
        old = Listener(listen_stream(address), None, lambda *_: None)
        delete()
        new = Listener(listen_stream(address), None, lambda *_: None)
        old.close()
        assert present()
        new.close()

    scenario()
