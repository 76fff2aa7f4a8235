"""Whoever dials a guest is still there when the answer comes, because its device does not survive the other case."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.dial import dial
from wgvsock.addresses import HybridVsockAddress, Port, UnixAddress
from wgvsock.transports.errors import ConnectError

pytestmark = pytest.mark.asyncio

TURNS = 20
"""Turns of the event loop, more than enough for leaving."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "u"))
        listener.listen()
        listener.setblocking(False)
        yield listener


async def asked(device: socket.socket) -> tuple[asyncio.Task[socket.socket], socket.socket]:
    """Dial, and return the attempt, with the device's end after CONNECT has arrived."""
    loop = asyncio.get_running_loop()
    attempt = loop.create_task(dial(HybridVsockAddress(device.getsockname(), Port(51821))))
    end, _ = await loop.sock_accept(device)
    assert await loop.sock_recv(end, 64) == b"CONNECT 51821\n"
    return attempt, end


async def test_a_cancelled_attempt_waits_for_the_answer_and_leaves_then(device: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    attempt, end = await asked(device)
    with end:
        attempt.cancel()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not attempt.done()
        await loop.sock_sendall(end, b"OK 1073741824\n")
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert await loop.sock_recv(end, 1) == b""


async def test_a_cancelled_attempt_ends_with_a_refusal(device: socket.socket) -> None:
    attempt, end = await asked(device)
    attempt.cancel()
    end.close()
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_one_that_is_not_cancelled_returns_the_connection(device: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    attempt, end = await asked(device)
    with end:
        await loop.sock_sendall(end, b"OK 1073741824\nfirst")
        with await attempt as sock:
            assert await loop.sock_recv(sock, 64) == b"first"


async def test_where_nothing_listens_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConnectError):
        await dial(UnixAddress(str(tmp_path / "nobody")))
