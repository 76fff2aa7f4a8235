"""One connection of the provisioning port: the messages between its socket and its exchange."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import pytest

from wgvsock.enclave.connection import Connection
from wgvsock.provisioning import Exchange
from wgvsock.testing import without_waiting
from wgvsock.transports.sockets import PRESSURE_PAUSE


class FakeExchange:
    """Sends what the test provides, and records what it receives."""

    def __init__(self) -> None:
        self.says = b""
        self.heard: list[bytes] = []
        self.closed = False
        self.proved = False

    def data_to_send(self) -> bytes:
        said, self.says = self.says, b""
        return said

    def receive_data(self, data: bytes, now: float) -> None:
        assert now == 7.0
        self.heard.append(data)

    def receive_eof(self) -> None:
        self.closed = True


class FakeSocket:
    """A socket with occasional kernel behaviour."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fails_to_send: list[OSError] = []
        self.fails_to_receive: OSError | None = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytearray) -> int:
        if self.fails_to_send:
            raise self.fails_to_send.pop(0)
        return self.sock.send(data)

    def recv(self, size: int) -> bytes:
        if self.fails_to_receive is not None:
            raise self.fails_to_receive
        return self.sock.recv(size)


class Server:
    """A `Connection`, and the server that it informs."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        for sock in (near, self.far):
            sock.setblocking(False)
        self.socket = FakeSocket(near)
        self.exchange = FakeExchange()
        self.queued: list[Connection] = []
        self.forgotten: list[Connection] = []
        self.settled = 0
        self.connection: Connection

    def open(self) -> Connection:
        self.connection = Connection(
            cast("socket.socket", self.socket), cast("Exchange", self.exchange), self, lambda: 7.0
        )
        return self.connection

    def settle(self) -> None:
        self.settled += 1
        self.connection.flush()

    def queue(self, connection: Connection) -> None:
        self.queued.append(connection)

    def forget(self, connection: Connection) -> None:
        self.forgotten.append(connection)

    def say(self, said: bytes) -> None:
        self.exchange.says = said
        self.connection.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.far.close()
    made.socket.close()


async def read(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 1 << 20)


@without_waiting
async def test_a_stranger_is_read_when_it_is_his_turn(server: Server) -> None:
    connection = server.open()
    server.far.send(b"hello")
    await asyncio.sleep(0.1)
    assert (server.queued, server.exchange.heard) == ([connection], [])
    connection.read()
    assert server.exchange.heard == [b"hello"]
    assert server.settled == 1
    server.far.send(b"more")
    await asyncio.sleep(0.1)
    assert len(server.queued) == 2, "looked at again"
    connection.close()


@without_waiting
async def test_the_proved_relay_is_read_at_once(server: Server) -> None:
    connection = server.open()
    server.exchange.proved = True
    server.far.send(b"result")
    await asyncio.sleep(0.1)
    assert (server.queued, server.exchange.heard) == ([], [b"result"])
    connection.close()


@without_waiting
async def test_nothing_to_read_is_no_end(server: Server) -> None:
    connection = server.open()
    connection.read()
    assert not server.exchange.closed
    assert server.forgotten == []
    connection.close()


@pytest.mark.parametrize("reset", [False, True])
@without_waiting
async def test_who_goes_away_is_forgotten(server: Server, reset: bool) -> None:
    connection = server.open()
    server.far.close()
    if reset:
        server.socket.fails_to_receive = ConnectionResetError()
    connection.read()
    assert server.forgotten == [connection]
    assert server.socket.fileno() == -1


@without_waiting
async def test_what_the_kernel_does_not_take_at_once_follows(server: Server) -> None:
    connection = server.open()
    long = bytes(4_000_000)
    server.say(long)
    got = 0
    while got < len(long):
        got += len(await read(server.far))
    connection.close()


@without_waiting
async def test_the_last_word_is_sent_before_the_end(server: Server) -> None:
    server.open()
    server.exchange.closed = True
    server.say(b"goodbye")
    assert await read(server.far) == b"goodbye"
    assert await read(server.far) == b""


@without_waiting
async def test_who_makes_no_room_for_the_last_word_does_without(server: Server) -> None:
    connection = server.open()
    with suppress(BlockingIOError):
        while True:
            server.socket.sock.send(bytes(4096))
    server.exchange.closed = True
    server.say(b"goodbye")
    assert server.forgotten == [connection]


@without_waiting
async def test_a_kernel_without_memory_delays_an_answer(server: Server) -> None:
    connection = server.open()
    server.socket.fails_to_send = [OSError(errno.ENOBUFS, "")] * 2
    server.say(b"answer")
    connection.flush()
    await asyncio.sleep(PRESSURE_PAUSE * 2)
    assert await read(server.far) == b"answer"
    server.socket.fails_to_send = [OSError(errno.ENOBUFS, "")]
    server.say(b"never sent")
    connection.close()
    await asyncio.sleep(PRESSURE_PAUSE * 2)
    assert await read(server.far) == b""


@without_waiting
async def test_a_stream_that_breaks_while_sending(server: Server) -> None:
    connection = server.open()
    server.socket.fails_to_send = [BrokenPipeError()]
    server.say(b"x")
    assert server.exchange.closed
    assert server.forgotten == [connection]


def test_the_longest_message_fits_into_one_read() -> None:
    taken: list[int] = []

    class Counting(FakeSocket):
        def recv(self, size: int) -> bytes:
            taken.append(size)
            return super().recv(size)

    @without_waiting
    async def scenario() -> None:
        server: Any = Server()
        server.socket = Counting(server.socket.sock)
        server.open().read()
        server.connection.close()
        server.far.close()

    scenario()
    assert taken[0] >= 16_384
