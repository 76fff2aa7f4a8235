import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from wgvsock.addresses import HybridVsockAddress, Port, StreamAddress, TcpAddress, UdpAddress, UnixAddress
from wgvsock.errors import LocalProtocolError
from wgvsock.framing import Framing
from wgvsock.testing import without_waiting
from wgvsock.transports import stream
from wgvsock.transports.base import Link
from wgvsock.transports.errors import ListenError
from wgvsock.transports.link import StreamLink
from wgvsock.transports.sockets import connect_stream
from wgvsock.transports.stream import AUTHENTICATION_TIMEOUT, StreamTransport


class End:
    """A transport with its reports."""

    def __init__(self, transport: StreamTransport) -> None:
        self.transport = transport
        self.datagrams: list[tuple[Link, bytes]] = []
        self.connected: list[Link] = []
        self.writable: list[Link] = []
        self.news = asyncio.Event()

    async def start(self) -> None:
        await self.transport.start(self.received, self.writable.append, self.has_connected)

    def has_connected(self, link: Link) -> None:
        self.connected.append(link)
        self.news.set()

    def received(self, link: Link, datagrams: list[memoryview]) -> None:
        self.datagrams += [(link, bytes(datagram)) for datagram in datagrams]
        self.news.set()

    def send(self, endpoint: object, datagram: bytes) -> None:
        link = self.transport.link_for(endpoint)
        assert link is not None
        room = link.reserve(len(datagram))
        assert room is not None
        room[: len(datagram)] = datagram
        link.commit(len(datagram))
        link.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a report makes the condition true."""
        async with asyncio.timeout(60):
            while not condition():
                await self.news.wait()
                self.news.clear()

    async def streams(self, count: int) -> None:
        """Wait until this many streams have been connected in total."""
        await self.until(lambda: len(self.connected) >= count)


@asynccontextmanager
async def end(transport: StreamTransport) -> AsyncIterator[End]:
    made = End(transport)
    await made.start()
    try:
        yield made
    finally:
        await transport.aclose()


@asynccontextmanager
async def both(folder: Path, framing: Framing = Framing.NATIVE) -> AsyncIterator[tuple[End, End, StreamAddress]]:
    """A dialling end, a listening end, and the address between them."""
    address = UnixAddress(str(folder / "s"))
    async with (
        end(StreamTransport(framing=framing)) as dialling,
        end(StreamTransport(listen=[address], framing=framing)) as listening,
    ):
        yield dialling, listening, address


@pytest.mark.parametrize("framing", list(Framing))
def test_datagrams_both_ways(tmp_path: Path, framing: Framing) -> None:
    @without_waiting
    async def scenario() -> None:
        async with both(tmp_path, framing) as (dialling, listening, address):
            dialling.transport.link_for(address)
            await dialling.streams(1)
            dialling.send(address, b"initiation")
            await listening.until(lambda: bool(listening.datagrams))
            (link, datagram), *_ = listening.datagrams
            assert datagram == b"initiation"
            listening.send(link, b"response")
            await dialling.until(lambda: bool(dialling.datagrams))
            assert dialling.datagrams == [(dialling.transport.link_for(address), b"response")]

    scenario()


def test_one_link_an_address_through_all_its_streams(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        async with both(tmp_path) as (dialling, listening, address):
            link = dialling.transport.link_for(address)
            assert link is dialling.transport.link_for(address)
            await listening.streams(1)
            listening.connected[0].close("test")
            await listening.streams(2)
            assert dialling.connected == [link, link]
            assert dialling.transport.link_for(link) is link
            assert len(listening.connected) == 2

    scenario()


def test_an_accepted_link_is_of_no_use_after_its_stream(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        async with both(tmp_path) as (dialling, listening, address):
            dialling.transport.link_for(address)
            await listening.streams(1)
            accepted = listening.connected[0]
            assert listening.transport.link_for(accepted) is accepted
            accepted.close("test")
            assert listening.transport.link_for(accepted) is None

    scenario()


@without_waiting
async def test_what_is_no_endpoint_of_a_stream() -> None:
    async with end(StreamTransport()) as made:
        assert made.transport.link_for(UdpAddress("192.0.2.1", Port(1))) is None
        assert made.transport.link_for(None) is None


@without_waiting
async def test_every_kind_of_address_is_dialled() -> None:
    async with end(StreamTransport()) as made:
        for address in (TcpAddress("127.0.0.1", Port(9)), HybridVsockAddress("/nowhere", Port(9))):
            link = made.transport.link_for(address)
            assert link is not None
            assert link.address == address


def test_strangers_are_closed_and_friends_stay(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        address = UnixAddress(str(tmp_path / "s"))
        async with end(StreamTransport(listen=[address])) as listening:
            loop = asyncio.get_running_loop()
            socks = [await connect_stream(address, deadline=loop.time() + 5) for _ in range(2)]
            await asyncio.sleep(1)
            stranger, friend = listening.connected
            friend.mark_authenticated()
            await asyncio.sleep(AUTHENTICATION_TIMEOUT + 1)
            assert listening.transport.link_for(stranger) is None
            assert listening.transport.link_for(friend) is friend
            for sock in socks:
                sock.close()
            await asyncio.sleep(0.1)
            assert listening.transport.link_for(friend) is None

    scenario()


class Crowd:
    """Streams to one listening end."""

    def __init__(self, listening: End, address: StreamAddress) -> None:
        self.listening = listening
        self.address = address
        self.socks: list[socket.socket] = []

    async def another(self) -> None:
        deadline = asyncio.get_running_loop().time() + 5
        self.socks.append(await connect_stream(self.address, deadline=deadline))
        await asyncio.sleep(0.01)

    def alive(self) -> list[bool]:
        return [isinstance(link, StreamLink) and link.connected for link in self.listening.connected]


@asynccontextmanager
async def crowd(folder: Path) -> AsyncIterator[Crowd]:
    address = UnixAddress(str(folder / "s"))
    async with end(StreamTransport(listen=[address])) as listening:
        made = Crowd(listening, address)
        yield made
        for sock in made.socks:
            sock.close()


def test_a_newcomer_takes_the_oldest_stranger_s_place_and_never_a_peer_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_STRANGERS", 2)

    @without_waiting
    async def scenario() -> None:
        async with crowd(tmp_path) as made:
            for _ in range(2):
                await made.another()
            made.listening.connected[0].mark_authenticated()
            for _ in range(3):
                await made.another()
            assert made.alive() == [True, False, False, True, True]

    scenario()


def test_peers_cannot_take_more_places_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_ACCEPTED", 2)

    @without_waiting
    async def scenario() -> None:
        async with crowd(tmp_path) as made:
            for _ in range(4):
                await made.another()
            for link in made.listening.connected[:3]:
                link.mark_authenticated()
            assert made.alive() == [True, True, False, True]
            made.listening.connected[0].close("test")
            made.listening.connected[3].mark_authenticated()
            assert made.alive() == [False, True, False, True]

    scenario()


def test_an_accepted_link_that_finds_no_place_ends_no_dialled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may have one address."""
    monkeypatch.setattr(stream, "MAX_ACCEPTED", 0)

    @without_waiting
    async def scenario() -> None:
        async with crowd(tmp_path) as made:
            dialled = made.listening.transport.link_for(made.address)
            await made.listening.streams(2)
            await made.another()
            made.listening.connected[-1].mark_authenticated()
            assert made.alive() == [True, True, False]
            await asyncio.sleep(10)
            assert made.listening.connected.count(dialled) == 1  # type: ignore[arg-type]
            assert len(made.listening.connected) == 3

    scenario()


def test_letting_go_of_what_is_no_endpoint_any_more(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        async with both(tmp_path) as (dialling, listening, address):
            other = UnixAddress(str(tmp_path / "other"))
            link = dialling.transport.link_for(address)
            dialling.transport.link_for(other)
            await listening.streams(1)
            dialling.transport.retain({address, other})
            dialling.transport.retain({link})
            assert link is not None
            assert link.connected
            dialling.transport.retain(set())
            assert not link.connected
            await asyncio.sleep(60)
            assert len(listening.connected) == 1

    scenario()


def test_changing_where_to_listen(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        first, second = (UnixAddress(str(tmp_path / name)) for name in ("first", "second"))
        loop = asyncio.get_running_loop()
        async with end(StreamTransport(listen=[first])) as listening:
            kept = await connect_stream(first, deadline=loop.time() + 5)
            await listening.streams(1)
            await listening.transport.set_listen([second, first])
            await listening.transport.set_listen([second])
            moved = await connect_stream(second, deadline=loop.time() + 5)
            await listening.streams(2)
            with pytest.raises(ListenError):
                await listening.transport.set_listen([first, UnixAddress("/nowhere/s")])
            still = await connect_stream(second, deadline=loop.time() + 5)
            await listening.streams(3)
            for sock in (kept, moved, still):
                sock.close()
            assert len(listening.connected) == 3

    scenario()


def test_closing_closes_everything(tmp_path: Path) -> None:
    @without_waiting
    async def scenario() -> None:
        async with both(tmp_path) as (dialling, listening, address):
            link = dialling.transport.link_for(address)
            await listening.streams(1)
            await listening.transport.aclose()
            await listening.transport.aclose()
            assert listening.transport.link_for(listening.connected[0]) is None
            await dialling.transport.aclose()
            assert link is not None
            assert not link.connected

    scenario()


@without_waiting
async def test_using_a_transport_before_its_start_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        StreamTransport().link_for(UnixAddress("/s"))
