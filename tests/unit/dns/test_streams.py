from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from wgvsock.dns.messages import MAX_QUERY
from wgvsock.dns.streams import IDLE, PIPELINED, Serve, StreamClient, read_message, send_message
from wgvsock.testing import without_waiting


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    with ours, theirs:
        yield ours, theirs


class Closed:
    """Collects the clients that have ended."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __call__(self, _: StreamClient) -> None:
        self.event.set()


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[tuple[socket.socket, StreamClient, Closed]]:
    with pair() as (ours, theirs):
        closed = Closed()
        client = StreamClient(ours, serve, closed)
        yield theirs, client, closed
        client.close()
        await closed.event.wait()


async def backwards(wire: bytes) -> bytes:
    return wire[::-1]


@without_waiting
async def test_a_message_goes_through_as_it_is() -> None:
    with pair() as (one, other):
        await send_message(one, b"abc")
        await send_message(one, b"")
        assert await read_message(other) == b"abc"
        assert await read_message(other) == b""


@without_waiting
async def test_a_stream_that_ends_within_a_message() -> None:
    with pair() as (one, other):
        one.send(b"\0\5ab")
        one.close()
        with pytest.raises(EOFError):
            await read_message(other)


@without_waiting
async def test_a_message_beyond_the_limit_is_not_read() -> None:
    with pair() as (one, other):
        one.send(b"\0\5abcde")
        with pytest.raises(OSError, match="5 bytes"):
            await read_message(other, limit=4)


@without_waiting
async def test_queries_in_a_row_are_answered() -> None:
    async with served(backwards) as (theirs, _, _):
        theirs.send(b"\0\3abc\0\2de")
        assert await read_message(theirs) == b"cba"
        assert await read_message(theirs) == b"ed"


@without_waiting
async def test_a_query_in_pieces_is_one() -> None:
    async with served(backwards) as (theirs, _, _):
        for piece in (b"\0", b"\3a", b"bc"):
            theirs.send(piece)
            await asyncio.sleep(0.1)
        assert await read_message(theirs) == b"cba"


@without_waiting
async def test_the_answers_come_even_if_the_client_has_finished_asking() -> None:
    answer = asyncio.Event()

    async def later(wire: bytes) -> bytes:
        await answer.wait()
        return wire

    async with served(later) as (theirs, _, closed):
        theirs.send(b"\0\3abc")
        theirs.shutdown(socket.SHUT_WR)
        await asyncio.sleep(1)
        answer.set()
        assert await read_message(theirs) == b"abc"
        await closed.event.wait()


@without_waiting
async def test_a_slow_query_does_not_hold_up_the_next_one_but_too_many_do() -> None:
    slow = asyncio.Event()
    begun: list[bytes] = []

    async def serve(wire: bytes) -> bytes:
        begun.append(wire)
        if wire != b"q":
            await slow.wait()
        return wire

    async with served(serve) as (theirs, _, _):
        theirs.send(b"\0\1s\0\1q" + b"\0\1s" * PIPELINED)
        assert await read_message(theirs) == b"q"
        await asyncio.sleep(1)
        assert begun.count(b"s") == PIPELINED
        slow.set()
        assert [await read_message(theirs) for _ in range(PIPELINED + 1)] == [b"s"] * (PIPELINED + 1)


@without_waiting
async def test_where_there_is_no_answer_nothing_is_sent() -> None:
    async def none(wire: bytes) -> bytes | None:
        return wire if wire == b"b" else None

    async with served(none) as (theirs, _, _):
        theirs.send(b"\0\1a\0\1b")
        assert await read_message(theirs) == b"b"


@pytest.mark.parametrize("sent", [b"", b"\0\5ab"], ids=["nothing", "half a message"])
@without_waiting
async def test_a_client_that_says_nothing_more_is_let_go(sent: bytes) -> None:
    async with served(backwards) as (theirs, _, closed):
        theirs.send(sent)
        begin = asyncio.get_running_loop().time()
        await closed.event.wait()
        assert asyncio.get_running_loop().time() - begin == pytest.approx(IDLE)
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""


@without_waiting
async def test_a_client_that_takes_no_answers_is_let_go() -> None:
    async def long(_: bytes) -> bytes:
        return bytes(65535)

    async with served(long) as (theirs, _, closed):
        theirs.send(b"\0\1a" * 10)
        await asyncio.wait_for(closed.event.wait(), 2 * IDLE)


@without_waiting
async def test_a_query_that_is_too_long_ends_the_connection() -> None:
    async with served(backwards) as (theirs, _, closed):
        theirs.send((MAX_QUERY + 1).to_bytes(2, "big"))
        begin = asyncio.get_running_loop().time()
        await closed.event.wait()
        assert asyncio.get_running_loop().time() == begin


@without_waiting
async def test_one_that_is_closed_before_it_has_begun_is_closed_too() -> None:
    async with served(backwards) as (theirs, client, closed):
        client.close()
        await closed.event.wait()
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
