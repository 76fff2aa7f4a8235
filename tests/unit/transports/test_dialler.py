import asyncio
import logging
import socket

import pytest

from wgvsock.addresses import UnixAddress
from wgvsock.framing import Framing
from wgvsock.runtime.backoff import INITIAL_BACKOFF, MAXIMUM_BACKOFF
from wgvsock.testing import without_waiting
from wgvsock.transports.dialler import RECENT, RECENT_BACKOFF, Dialler
from wgvsock.transports.errors import ConnectError
from wgvsock.transports.link import LinkCallbacks, StreamLink


class Remote:
    """Lets a dialler connect, or refuses, and records when it tried."""

    def __init__(self) -> None:
        self.attempts: list[float] = []
        self.refuses = False
        self.takes = 0.0
        self.ends: list[socket.socket] = []
        self.connected = asyncio.Event()
        self.dialler: Dialler
        callbacks = LinkCallbacks(
            on_datagrams=lambda *_: None,
            on_writable=lambda _: None,
            on_connected=lambda _: self.connected.set(),
            on_authenticated=lambda _: None,
            on_closed=lambda _: self.dialler.stream_closed(),
        )
        self.link = StreamLink(UnixAddress("/remote"), Framing.NATIVE, callbacks, dialled=True)
        self.dialler = Dialler(self.link, self.connect, lambda: 0.0)

    async def connect(self) -> socket.socket:
        self.attempts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes)
        if self.refuses:
            raise ConnectError("cannot connect to unix:/remote", why="the test refuses")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.ends.append(theirs)
        return ours

    def gaps(self) -> list[float]:
        return [round(b - a, 1) for a, b in zip(self.attempts, self.attempts[1:], strict=False)]

    async def aclose(self) -> None:
        await self.dialler.aclose()
        for end in self.ends:
            end.close()


@without_waiting
async def test_dials_at_once_and_again_after_the_end() -> None:
    remote = Remote()
    await asyncio.sleep(0.01)
    assert remote.link.connected
    remote.link.mark_authenticated()
    remote.link.close("test")
    await asyncio.sleep(INITIAL_BACKOFF + 0.1)
    assert remote.link.connected
    assert len(remote.attempts) == 2
    await remote.aclose()
    assert not remote.link.connected


@without_waiting
async def test_the_link_knows_since_when_and_after_how_long_it_is_connected() -> None:
    remote = Remote()
    remote.takes = 0.25
    assert remote.link.connected_at is None
    begun = asyncio.get_running_loop().time()
    await asyncio.sleep(3.0)
    assert remote.link.connected_at == pytest.approx(begun + 0.25)
    assert remote.link.connect_seconds == pytest.approx(0.25)
    await remote.aclose()


@without_waiting
async def test_refusals_back_off() -> None:
    remote = Remote()
    remote.refuses = True
    await asyncio.sleep(120)
    assert remote.gaps()[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    await remote.aclose()


def test_a_lasting_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @without_waiting
    async def scenario() -> None:
        remote = Remote()
        remote.refuses = True
        await asyncio.sleep(120)
        remote.refuses = False
        await asyncio.sleep(31)
        remote.refuses = True
        remote.link.close("test")
        await asyncio.sleep(120)
        await remote.aclose()

    with caplog.at_level(logging.WARNING):
        scenario()
    assert caplog.messages == ["cannot connect to unix:/remote: the test refuses"] * 2


@without_waiting
async def test_connecting_alone_resets_nothing() -> None:
    remote = Remote()
    for _ in range(6):
        await remote.connected.wait()
        remote.connected.clear()
        remote.link.close("accepted and thrown out")
    await asyncio.sleep(60)
    assert [a < b for a, b in zip(remote.gaps(), remote.gaps()[1:], strict=False)] == [True] * 5
    await remote.aclose()


@without_waiting
async def test_an_authenticated_message_resets() -> None:
    remote = Remote()
    remote.refuses = True
    await asyncio.sleep(40)
    remote.refuses = False
    await remote.connected.wait()
    remote.link.mark_authenticated()
    remote.attempts.clear()
    before = asyncio.get_running_loop().time()
    remote.link.close("test")
    await asyncio.sleep(MAXIMUM_BACKOFF)
    assert remote.attempts[0] - before == pytest.approx(INITIAL_BACKOFF)
    await remote.aclose()


@without_waiting
async def test_a_remote_that_proved_itself_lately_is_asked_often_for_a_while() -> None:
    remote = Remote()
    await remote.connected.wait()
    remote.link.mark_authenticated()
    remote.refuses = True
    remote.link.close("test")
    await asyncio.sleep(RECENT + 120)
    gaps = remote.gaps()
    assert set(gaps[:110]) == {RECENT_BACKOFF}
    assert gaps[-1] > RECENT_BACKOFF
    await remote.aclose()


@without_waiting
async def test_closing_while_dialling_leaves_nothing() -> None:
    remote = Remote()
    remote.refuses = True
    await asyncio.sleep(1)
    await remote.aclose()
    attempts = len(remote.attempts)
    await asyncio.sleep(100)
    assert len(remote.attempts) == attempts
