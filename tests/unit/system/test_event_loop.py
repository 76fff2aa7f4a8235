"""The event loop whose readers are called straight out of epoll: asyncio's promises hold in it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from wgvsock.system import event_loop
from wgvsock.system.event_loop import EventLoop

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected stream sockets that do not block."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def in_loop(body: Callable[[EventLoop], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EventLoop)
        async with asyncio.timeout(20):
            await body(loop)

    event_loop.run(main())


def take(sock: socket.socket, taken: asyncio.Event) -> None:
    sock.recv(10)
    taken.set()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_run_returns_what_the_coroutine_does() -> None:
    async def seven() -> int:
        return 7

    assert event_loop.run(seven()) == 7


@pytest.mark.parametrize("arguments", [(), (1, "two")])
def test_a_reader_is_called_with_its_arguments_while_there_is_something_to_read(
    pair: Pair, arguments: tuple[object, ...]
) -> None:
    near, far = pair
    calls: list[tuple[object, ...]] = []

    async def body(loop: EventLoop) -> None:
        enough = asyncio.Event()

        def readable(*received: object) -> None:
            calls.append(received)
            if len(calls) == 2:  # the first call has read nothing
                near.recv(10)
                enough.set()

        loop.add_reader(near, readable, *arguments)
        await turns()
        assert not calls
        far.send(b"x")
        await enough.wait()
        await turns()
        assert calls == [arguments, arguments]
        assert loop.remove_reader(near)
        assert not loop.remove_reader(near)

    in_loop(body)


def test_a_reader_is_called_without_another_turn_of_the_loop(pair: Pair) -> None:
    near, far = pair
    order: list[str] = []

    async def body(loop: EventLoop) -> None:
        def readable() -> None:
            near.recv(10)
            order.append("reader")

        loop.add_reader(near.fileno(), readable)
        far.send(b"x")
        loop.call_soon(lambda: loop.call_soon(order.append, "next turn"))
        await turns(4)

    in_loop(body)
    assert order == ["reader", "next turn"]


def test_a_second_reader_replaces_the_first(pair: Pair) -> None:
    near, far = pair

    async def body(loop: EventLoop) -> None:
        read = asyncio.Event()
        loop.add_reader(near, pytest.fail, "the first reader")
        loop.add_reader(near, take, near, read)
        far.send(b"x")
        await read.wait()

    in_loop(body)


def test_what_one_reader_takes_away_the_next_does_not_see(pair: Pair) -> None:
    """Both are ready in the same wait."""
    calls: list[socket.socket] = []

    async def body(loop: EventLoop) -> None:
        def readable(sock: socket.socket) -> None:
            calls.append(sock)
            for each in pair:
                loop.remove_reader(each)

        for sock, other in (pair, pair[::-1]):
            loop.add_reader(sock, readable, sock)
            other.send(b"x")
        await turns()

    in_loop(body)
    assert len(calls) == 1


def test_a_failing_reader_is_reported_and_ends_nothing(pair: Pair) -> None:
    near, far = pair
    reports: list[dict[str, Any]] = []

    async def body(loop: EventLoop) -> None:
        again = asyncio.Event()

        def readable() -> None:
            if not near.recv(1).isdigit():
                raise ValueError("no digit")
            again.set()

        loop.set_exception_handler(lambda _, context: reports.append(context))
        loop.add_reader(near, readable)
        far.send(b"x1")
        await again.wait()

    in_loop(body)
    (report,) = reports
    assert isinstance(report["exception"], ValueError)
    assert "readable" in report["message"]


def test_an_interrupt_in_a_reader_ends_the_loop(pair: Pair) -> None:
    near, far = pair

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def body(loop: EventLoop) -> None:
        loop.add_reader(near, interrupt)
        far.send(b"x")
        await asyncio.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        in_loop(body)


def test_a_descriptor_that_was_closed_first_can_be_given_up_and_its_number_used_again() -> None:
    async def body(loop: EventLoop) -> None:
        near, far = socket.socketpair()
        number = near.fileno()
        loop.add_reader(near, pytest.fail, "closed")
        near.close()
        far.close()
        near, far = socket.socketpair()
        with near, far:
            assert near.fileno() == number
            read = asyncio.Event()
            loop.add_reader(number, take, near, read)
            far.send(b"x")
            await read.wait()
            near.close()
            assert loop.remove_reader(number)
            assert not loop.remove_reader(number)

    in_loop(body)


def test_a_number_can_be_used_again_where_asyncio_has_waited_for_it() -> None:
    async def body(loop: EventLoop) -> None:
        for _ in range(3):
            near, far = socket.socketpair()
            with near, far:
                near.setblocking(False)
                received = asyncio.ensure_future(loop.sock_recv(near, 10))
                await turns()
                far.send(b"x")
                assert await received == b"x"

    in_loop(body)


def test_a_descriptor_that_does_not_exist_is_refused() -> None:
    async def body(loop: EventLoop) -> None:
        near, far = socket.socketpair()
        number = near.fileno()
        near.close()
        far.close()
        with pytest.raises(OSError, match="descriptor"):
            loop.add_reader(number, print)
        assert not loop.remove_reader(number)

    in_loop(body)


def test_timers_and_tasks_have_their_turn_beside_a_reader_that_is_always_ready(pair: Pair) -> None:
    near, far = pair

    async def body(loop: EventLoop) -> None:
        far.send(b"x")
        loop.add_reader(near, lambda: None)
        await asyncio.sleep(0.01)
        await asyncio.to_thread(lambda: None)  # woken from another thread

    in_loop(body)


def test_reader_and_writer_of_one_socket(pair: Pair) -> None:
    near, far = pair

    async def body(loop: EventLoop) -> None:
        wrote, read = asyncio.Event(), asyncio.Event()
        loop.add_reader(near, take, near, read)

        def writable() -> None:
            loop.remove_writer(near)
            wrote.set()

        loop.add_writer(near, writable)
        await wrote.wait()
        far.send(b"x")
        await read.wait()

    in_loop(body)


def test_asyncios_own_servers_children_and_signals_work() -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.WriteTransport)
            self.write = transport.write

        def data_received(self, data: bytes) -> None:
            self.write(data)

    async def body(loop: EventLoop) -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        async with server:
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, server.sockets[0].getsockname())
                await loop.sock_sendall(client, b"hello\n")
                assert await loop.sock_recv(client, 10) == b"hello\n"
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            "print(input())",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert (await child.communicate(b"hello\n"))[0] == b"hello\n"
        signalled = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await signalled.wait()

    in_loop(body)
