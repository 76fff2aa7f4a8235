"""The provisioning port: exchanges over real Unix sockets in the test's folder."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from wgvsock.addresses import UnixAddress
from wgvsock.enclave.provisioner import RECEIVE_BUFFER, ProvisioningServer
from wgvsock.provisioning import (
    LISTEN_BACKLOG,
    MAX_WAITING,
    STRANGERS_BURST,
    STRANGERS_SHARE,
    AttestationNeeded,
    ConfigurationOffered,
    EnclaveProvisioning,
    ExchangeEnded,
    StrangersTurnedAway,
)
from wgvsock.provisioning.frames import encode_frame
from wgvsock.provisioning.messages import Request, Result
from wgvsock.testing import SeededRandom, without_waiting
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, RelayHalf
from wgvsock.transports.sockets import DESCRIPTOR_PAUSE, accept_now, listen_stream


class Port:
    """A server, the machine behind it, and the events that were carried out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Any] = []
        self.arrived = asyncio.Event()
        self.fails = False
        self.descriptors_left = True
        self.refused = 0
        self.accepts_instead: socket.socket | None = None  # of whoever connects
        self.piece = 0.0
        """Seconds of processor time of a piece of work, between two readings of the clock."""
        self.worked = 0.0
        self.working = False
        self.machine = EnclaveProvisioning(random=SeededRandom("port"))
        self.server = ProvisioningServer(
            listen_stream(UnixAddress(str(path)), backlog=LISTEN_BACKLOG),
            self.machine,
            self.work,
            clock=asyncio.get_running_loop().time,
            work_clock=self.work_clock,
            accept=self.accept,
        )

    def accept(self, listener: socket.socket, **options: Any) -> Any:
        if not self.descriptors_left:
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        accepted = accept_now(listener, **options)
        if accepted is None or self.accepts_instead is None:
            return accepted
        accepted[0].close()
        return self.accepts_instead, UnixAddress("-")

    def work_clock(self) -> float:
        if self.working:
            self.worked += self.piece
        self.working = not self.working
        return self.worked

    async def work(self, event: Any) -> None:
        if self.fails:
            raise ValueError("the test says so")
        self.events.append(event)
        self.arrived.set()

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
    """Return what arrives up to the end of the stream, or up to a frame's end when nothing more comes."""
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
        assert isinstance(event, StrangersTurnedAway)


@without_waiting
async def test_the_relay_goes_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        port.connect().close()
        await asyncio.sleep(0.1)
        assert isinstance(port.events[0], StrangersTurnedAway)
        assert port.server.connections == 0


@without_waiting
async def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            await read(relay)
            began = asyncio.get_running_loop().time()
            assert (await read(relay))[4:]  # ERROR
            assert asyncio.get_running_loop().time() - began == pytest.approx(port.machine.deadlines.frame, abs=0.2)


async def provision(relay: socket.socket) -> RelayHalf:
    """Send a valid REQUEST in answer to HELLO."""
    half = RelayHalf((await read(relay))[4:])
    config = replace(TUNNEL_CONFIG, capabilities=("framing/native", "profile/plain"))
    message = half.request(Request(b"n" * 32, RELAY_PUBLIC_KEY, 1, config.to_fields()).encode())
    relay.send(encode_frame(message))
    return half


async def events_of(port: Port, count: int) -> list[Any]:
    """Wait until this many have been carried out."""
    while len(port.events) < count:
        port.arrived.clear()
        await port.arrived.wait()
    return port.events


@without_waiting
async def test_a_whole_exchange_among_silent_strangers(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        strangers = [port.connect() for _ in range(20)]
        with port.connect() as relay:
            half = await provision(relay)
            (offered,) = await events_of(port, 1)
            assert isinstance(offered, ConfigurationOffered)
            offered.exchange.configuration_applied(b"k" * 32, asyncio.get_running_loop().time())
            port.server.settle()
            (_, needed) = await events_of(port, 2)
            assert isinstance(needed, AttestationNeeded)
            offered.exchange.attestation_ready(b"document", asyncio.get_running_loop().time())
            port.server.settle()
            assert b"document" in half.open((await read(relay))[4:])
            relay.send(encode_frame(half.result(Result(0).encode())))
            assert (await events_of(port, 3))[2] == ExchangeEnded(offered.exchange, None)
            assert await read(relay) == b""
        for stranger in strangers:
            stranger.close()


@without_waiting
async def test_a_flood_holds_no_more_connections_than_there_are_places(tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with serving(tmp_path) as port:
            strangers: list[socket.socket] = []
            for _ in range(2 * MAX_WAITING):
                strangers.append(stack.enter_context(port.connect()))
                await asyncio.sleep(0)
                assert port.server.connections <= MAX_WAITING
            await asyncio.sleep(0.1)
            assert port.server.connections == MAX_WAITING
            assert len(await read(strangers[0])) > 150  # HELLO and, behind it, ERROR: busy
            assert await read(strangers[0]) == b""
            with port.connect() as relay:
                await provision(relay)
                while not any(isinstance(event, ConfigurationOffered) for event in port.events):
                    await events_of(port, len(port.events) + 1)


@without_waiting
async def test_strangers_get_their_share_of_the_processor_and_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        loop = asyncio.get_running_loop()
        port.piece = 0.01
        began = loop.time()
        for _ in range(200):
            with port.connect() as stranger:
                await read(stranger)
        assert port.worked > 10 * STRANGERS_BURST
        assert port.worked <= STRANGERS_BURST + STRANGERS_SHARE * (loop.time() - began) + 2 * port.piece


@without_waiting
async def test_one_byte_at_a_time_costs_its_sender_as_much_as_a_connect(tmp_path: Path) -> None:
    """Each byte is a piece of work within the allowance. The relay's REQUEST gets its turn between them."""
    async with serving(tmp_path) as port:
        loop = asyncio.get_running_loop()
        with port.connect() as dripping, port.connect() as relay:
            await read(dripping)
            port.piece = 0.001
            half = asyncio.ensure_future(provision(relay))
            began, worked = loop.time(), port.worked
            for byte in b"\0\0\x1f\xff" + bytes(496):
                dripping.send(bytes((byte,)))
                await asyncio.sleep(0)
            await half
            (offered,) = await events_of(port, 1)
            assert isinstance(offered, ConfigurationOffered)
            assert port.worked - worked <= STRANGERS_BURST + STRANGERS_SHARE * (loop.time() - began) + 2 * port.piece


@without_waiting
async def test_no_descriptor_left_is_a_pause_in_accepting_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as early:
            await read(early)
            port.descriptors_left = False
            late = port.connect()
            early.send(b"\xff" * 4)
            assert (await read(early))[4:]  # ERROR, meanwhile
            await asyncio.sleep(DESCRIPTOR_PAUSE / 2)
            port.descriptors_left = True
            assert port.refused == 1
            assert "Too many open files" in caplog.text
            assert len(await read(late)) > 64
            late.close()


@without_waiting
async def test_a_pause_in_accepting_ends_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        port.descriptors_left = False
        port.connect().close()
        await asyncio.sleep(0.1)
        assert port.refused == 1
    await asyncio.sleep(2 * DESCRIPTOR_PAUSE)
    assert port.refused == 1


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


class VsockListener:
    family = socket.AF_VSOCK

    def __init__(self) -> None:
        self.options: dict[tuple[int, int], int] = {}

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options[level, option] = value


@without_waiting
async def test_what_strangers_send_fills_no_more_than_a_small_buffer_each() -> None:
    listener: Any = VsockListener()
    ProvisioningServer(listener, EnclaveProvisioning(random=SeededRandom("x")), AsyncMock(), clock=lambda: 0.0)
    assert listener.options == {(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE): RECEIVE_BUFFER}
    assert RECEIVE_BUFFER * (MAX_WAITING + LISTEN_BACKLOG) <= 12 * 1024 * 1024


def without_room() -> tuple[socket.socket, socket.socket]:
    """A connection whose client grants no room to send, as any process on the parent can over vsock."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            near.send(bytes(4096))
    return near, far


@without_waiting
async def test_a_client_that_never_takes_its_answer_loses_its_place(tmp_path: Path) -> None:
    near, far = without_room()
    async with serving(tmp_path) as port:
        port.accepts_instead = near
        with port.connect():
            await asyncio.sleep(0.1)
            assert port.server.connections == 1
            await asyncio.sleep(port.machine.deadlines.frame)
            assert near.fileno() == -1
            assert port.server.connections == 0
    far.close()


@without_waiting
async def test_a_half_closed_client_that_never_takes_its_answer_is_gone_at_once(tmp_path: Path) -> None:
    """Its socket stays readable: polling it would leave no time for anything else."""
    near, far = without_room()
    far.shutdown(socket.SHUT_WR)
    async with serving(tmp_path) as port:
        port.accepts_instead = near
        with port.connect():
            await asyncio.sleep(0.1)
            assert near.fileno() == -1
            assert port.server.connections == 0
    far.close()


@without_waiting
async def test_a_half_closed_relay_at_work_is_gone_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as port:
        with port.connect() as relay:
            await provision(relay)
            await events_of(port, 1)
            relay.shutdown(socket.SHUT_WR)
            assert await read(relay) == b""
            assert port.server.connections == 0
