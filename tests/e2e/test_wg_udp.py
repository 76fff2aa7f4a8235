"""The UDP transport on this machine's kernel: segmentation and coalescing, both families, changes while it runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from wgvsock.addresses import Port, UdpAddress
from wgvsock.transports.base import Link
from wgvsock.transports.errors import ListenError
from wgvsock.transports.udp import UdpTransport

LOCALHOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


class Endpoint:
    """A transport with what it has received."""

    def __init__(self) -> None:
        self.transport = UdpTransport()
        self.batches: list[tuple[Link, list[bytes]]] = []
        self.arrived = asyncio.Event()

    def on_datagrams(self, link: Link, datagrams: list[memoryview]) -> None:
        self.batches.append((link, [bytes(datagram) for datagram in datagrams]))
        self.arrived.set()

    @property
    def datagrams(self) -> list[bytes]:
        return [datagram for _, batch in self.batches for datagram in batch]

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.datagrams) < count:
                self.arrived.clear()
                await self.arrived.wait()

    def send(self, to: UdpAddress, datagrams: list[bytes]) -> None:
        link = self.transport.link_for(to)
        assert link is not None
        for datagram in datagrams:
            room = link.reserve(len(datagram))
            assert room is not None
            room[:] = datagram
            link.commit(len(datagram))
        link.flush()


@asynccontextmanager
async def endpoints() -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    both = Endpoint(), Endpoint()
    try:
        for one in both:
            await one.transport.start(one.on_datagrams, lambda _: None, lambda _: None)
        yield both
    finally:
        for one in both:
            await one.transport.aclose()


@LOCALHOSTS
@pytest.mark.asyncio
async def test_whole_runs_cross_in_order(host: str) -> None:
    async with endpoints() as (here, there):
        sent = [bytes([number]) * 1400 for number in range(100)] + [b"short"] + [b"x" * 600] * 20
        here.send(UdpAddress(host, Port(there.transport.listen_port)), sent)
        await there.wait_for(len(sent))
        assert there.datagrams == sent
        assert max(len(batch) for _, batch in there.batches) > 1  # the kernel handed over a run in one read
        assert here.transport.dropped_unsendable == 0
        (link,) = {link for link, _ in there.batches}
        assert link.address == UdpAddress(host, Port(here.transport.listen_port))


@LOCALHOSTS
@pytest.mark.asyncio
async def test_the_answer_finds_its_way_by_the_link(host: str) -> None:
    async with endpoints() as (here, there):
        here.send(UdpAddress(host, Port(there.transport.listen_port)), [b"question"])
        await there.wait_for(1)
        link = there.batches[0][0]
        room = link.reserve(6)
        assert room is not None
        room[:] = b"answer"
        link.commit(6)
        link.flush()
        await here.wait_for(1)
        assert here.datagrams == [b"answer"]


@pytest.mark.asyncio
async def test_the_port_changes_and_the_remote_sees_the_new_one() -> None:
    async with endpoints() as (here, there):
        to = UdpAddress("127.0.0.1", Port(there.transport.listen_port))
        here.send(to, [b"before"])
        old = here.transport.listen_port
        await here.transport.set_listen_port(0)
        here.send(to, [b"after"])
        await there.wait_for(2)
        assert [link.address.port for link, _ in there.batches] == [old, here.transport.listen_port]  # type: ignore[union-attr]
        assert old != here.transport.listen_port


@pytest.mark.asyncio
async def test_a_port_in_use_is_refused_and_the_old_one_kept() -> None:
    async with endpoints() as (here, there):
        before = here.transport.listen_port
        with pytest.raises(ListenError, match="Address already in use"):
            await here.transport.set_listen_port(there.transport.listen_port)
        there.send(UdpAddress("127.0.0.1", Port(before)), [b"still here"])
        await here.wait_for(1)


@pytest.mark.asyncio
async def test_a_run_that_does_not_fit_the_path_leaves_in_fragments() -> None:
    """UDP_SEGMENT refuses segments over the MTU. The datagrams then leave one by one."""
    async with endpoints() as (here, there):
        sent = [b"a" * 65_507, b"b" * 65_507]
        here.send(UdpAddress("127.0.0.1", Port(there.transport.listen_port)), sent)
        await there.wait_for(2)
        assert there.datagrams == sent


@pytest.mark.asyncio
async def test_nobody_there_is_no_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = UdpAddress("127.0.0.1", Port(unused.getsockname()[1]))
    async with endpoints() as (here, there):
        for _ in range(3):
            here.send(nowhere, [b"x", b"y"])
        here.send(UdpAddress("127.0.0.1", Port(there.transport.listen_port)), [b"z"])
        await there.wait_for(1)
