"""The event loop that calls readers directly from epoll: asyncio's promises hold in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wgvsock.runtime import event_loop
from wgvsock.runtime.busy_poll import BusyPoll
from wgvsock.runtime.event_loop import EventLoop

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


def test_a_reader_is_called_ahead_of_what_is_scheduled(pair: Pair) -> None:
    near, far = pair
    order: list[str] = []

    async def body(loop: EventLoop) -> None:
        def readable() -> None:
            near.recv(10)
            order.append("reader")

        loop.add_reader(near.fileno(), readable)
        far.send(b"x")
        loop.call_soon(order.append, "scheduled before")
        await turns()

    in_loop(body)
    assert order == ["reader", "scheduled before"]


def test_busy_polling_begins_with_a_packet(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = pair
    made: list[tuple[float, int]] = []
    waits: list[list[int]] = []

    class Recorded(BusyPoll):
        def __init__(self, epoll: select.epoll, window: float, *, quiet: int) -> None:
            super().__init__(epoll, window, quiet=quiet)
            made.append((window, quiet))

        def __call__(self, timeout: float | None = None) -> list[tuple[int, int]]:
            ready = super().__call__(timeout)
            waits.append([descriptor for descriptor, _ in ready])
            return ready

    monkeypatch.setattr(event_loop, "BusyPoll", Recorded)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EventLoop)
        taken = asyncio.Event()
        loop.add_reader(near, take, near, taken)
        far.send(b"x")
        await taken.wait()
        woken = asyncio.Event()
        loop.call_soon_threadsafe(woken.set)
        await woken.wait()
        loop.busy_poll(0)
        await turns()

    event_loop.run(body(), busy_poll=0.001)
    ((window, quiet),) = made
    assert window == 0.001
    assert [near.fileno()] in waits
    assert [quiet] in waits, "asyncio's own descriptors are behind this one"


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


def test_a_writer_is_called_ahead_of_what_is_scheduled(pair: Pair) -> None:
    near, _ = pair
    order: list[object] = []

    async def body(loop: EventLoop) -> None:
        def writable(*received: object) -> None:
            order.append(received)
            loop.remove_writer(near)

        loop.add_writer(near, writable, "an argument")
        loop.call_soon(order.append, "scheduled before")
        await turns()
        assert not loop.remove_writer(near)

    in_loop(body)
    assert order == [("an argument",), "scheduled before"]


def test_the_end_of_a_stream_is_news_for_its_reader_and_its_writer(pair: Pair) -> None:
    near, far = pair
    called: list[str] = []

    async def body(loop: EventLoop) -> None:
        def hears(who: str, remove: Callable[[socket.socket], bool]) -> None:
            called.append(who)
            remove(near)

        near.send(bytes(1 << 22))  # until it takes no more
        loop.add_writer(near, hears, "writer", loop.remove_writer)
        loop.add_reader(near, hears, "reader", loop.remove_reader)
        await turns()
        assert not called
        far.close()
        await turns()

    in_loop(body)
    assert called == ["reader", "writer"]


def test_a_writer_that_its_reader_takes_away_is_not_called(pair: Pair) -> None:
    near, far = pair

    async def body(loop: EventLoop) -> None:
        read = asyncio.Event()

        def readable() -> None:
            loop.remove_writer(near)
            take(near, read)

        far.send(b"x")
        loop.add_reader(near, readable)
        loop.add_writer(near, pytest.fail, "the writer")
        await read.wait()
        await turns()

    in_loop(body)


def test_a_number_that_another_has_now_is_waited_for_anew() -> None:
    """What was waited for under it before does not come back with it."""

    async def body(loop: EventLoop) -> None:
        near, far = socket.socketpair()
        number = near.fileno()
        loop.add_reader(near, pytest.fail, "closed")
        near.close()
        far.close()
        near, far = socket.socketpair()
        with near, far:
            assert near.fileno() == number
            far.send(b"x")
            wrote = asyncio.Event()
            loop.add_writer(near, wrote.set)
            await wrote.wait()
            assert not loop.remove_reader(near)
            assert loop.remove_writer(near)

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


# Children. Process 1 has those of others too.


def spawn(*command: str) -> int:
    """A child that asyncio does not know, like an orphan."""
    return os.posix_spawnp(command[0], command, os.environ)


def is_collected(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def ended(pid: int) -> None:
    """Wait until a child has ended, and leave it uncollected."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_orphans_are_collected_and_the_status_of_our_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(loop: EventLoop) -> None:
        looked = asyncio.Event()
        really_look = loop.reap_orphans

        def look() -> None:
            really_look()
            looked.set()

        monkeypatch.setattr(loop, "reap_orphans", look)  # also where it looks again
        loop.add_signal_handler(signal.SIGCHLD, look)
        orphans = []
        for status in range(20):
            orphans += [spawn("true"), spawn("sh", "-c", "exit 3")]
            ours = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
            orphans.append(spawn("false"))
            assert await ours.wait() == status
        while not all(is_collected(orphan) for orphan in orphans):
            await looked.wait()
            looked.clear()
        loop.remove_signal_handler(signal.SIGCHLD)

    in_loop(body)


def test_a_child_that_was_started_a_moment_ago_is_ours() -> None:
    async def body(loop: EventLoop) -> None:
        pids: list[int] = []

        def protocol() -> asyncio.SubprocessProtocol:
            # The child may end before asyncio has told us which it is.
            pids.append(spawn("true"))
            ended(pids[0])
            loop.reap_orphans()
            assert not is_collected(pids[0])
            return asyncio.SubprocessProtocol()

        transport, _ = await loop.subprocess_exec(protocol, "sleep", "600")
        loop.reap_orphans()
        assert is_collected(pids[0])
        transport.kill()
        await asyncio.get_running_loop().run_in_executor(None, ended_or_gone, transport.get_pid())
        transport.close()

    def ended_or_gone(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            ended(pid)

    in_loop(body)


def test_our_own_goes_first_when_both_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(loop: EventLoop) -> None:
        waiting = [7, 8]
        collected: list[int] = []

        class Child:
            returncode: int | None = None

            def get_pid(self) -> int:
                return 7

            def get_returncode(self) -> int | None:
                return self.returncode

        def waitid(kind: int, number: int, options: int) -> Any:
            assert (kind, number) == (os.P_ALL, 0)
            assert options == os.WEXITED | os.WNOHANG | os.WNOWAIT
            return SimpleNamespace(si_pid=waiting[0]) if waiting else None

        def waitpid(pid: int, _: int) -> None:
            collected.append(pid)
            waiting.remove(pid)

        child = Child()
        loop._children = [child]  # type: ignore[list-item]
        with monkeypatch.context() as patch:
            patch.setattr(os, "waitid", waitid)
            patch.setattr(os, "waitpid", waitpid)
            patch.setattr(event_loop, "_PATIENCE", 0)
            loop.reap_orphans()
            loop.reap_orphans()
            await turns()
            assert not collected  # 8 is not seen as long as 7 is there
            child.returncode = 0
            waiting.remove(7)
            await turns()
            assert collected == [8]
            assert loop._reaping is None

    in_loop(body)


def test_without_children_there_is_nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(loop: EventLoop) -> None:
        def none(*_: object) -> None:
            raise ChildProcessError

        with monkeypatch.context() as patch:
            patch.setattr(os, "waitid", none)
            loop.reap_orphans()

    in_loop(body)
