"""An event loop whose readers and writers are called straight from epoll.

Between a ready descriptor and its callback, asyncio makes an event, a list, a handle and a queue of handles. In a busy
process this takes a few microseconds. In one that has slept, with cold caches, it takes more than thirty, and a ping
pays for it four times (docs/performance.md). Callbacks of `EventLoop.add_reader` and `add_writer` are therefore called
from within the wait. Everything else is asyncio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from wgvsock.runtime.busy_poll import BusyPoll

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_PATIENCE: Final = 0.1
"""Seconds until a child of asyncio's is checked again: asyncio's own watcher reaps it within a millisecond."""

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")


class DirectSelector(selectors.BaseSelector):
    """Waits for two kinds of descriptors: those with a direct callback, and those that asyncio has registered.

    Args:
        report: Called with a callback that failed, and what it raised.
    """

    def __init__(self, report: Callable[[Callable[[], object], BaseException], None]) -> None:
        self._report = report
        self._callbacks: dict[int, dict[int, Callable[[], object]]] = {}  # by descriptor and event
        self._registered = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._epoll.register(self._registered, select.EPOLLIN)  # readable when one of the others is ready
        self._wait: Callable[[float | None], list[tuple[int, int]]] = self._epoll.poll

    def attend(self, descriptor: int, event: int, callback: Callable[[], object]) -> None:
        """Call this whenever the descriptor is ready, instead of an earlier callback for the same event.

        Args:
            descriptor: An open one.
            event: EPOLLIN: it is readable. EPOLLOUT: it is writable.
            callback: What to call.

        Raises:
            OSError: The descriptor is not open, or epoll does not support it.
        """
        callbacks = self._callbacks.get(descriptor, {})
        try:
            if callbacks:
                self._epoll.modify(descriptor, sum({event, *callbacks}))
            else:
                self._epoll.register(descriptor, event)
        except FileNotFoundError:  # another one had the number, and epoll forgot it when that was closed
            callbacks = {}
            self._epoll.register(descriptor, event)
        self._callbacks[descriptor] = {**callbacks, event: callback}

    def disregard(self, descriptor: int, event: int) -> bool:
        """Remove the descriptor's callback for this event, and return whether there was one."""
        callbacks = self._callbacks.get(descriptor, {})
        if callbacks.pop(event, None) is None:
            return False
        with contextlib.suppress(OSError):  # it was closed first, and epoll has forgotten it
            if callbacks:
                self._epoll.modify(descriptor, sum(callbacks))
            else:
                self._epoll.unregister(descriptor)
        if not callbacks:
            del self._callbacks[descriptor]
        return True

    def busy_poll(self, window: float) -> None:
        """Do not sleep for this many seconds after a direct callback. 0: always sleep, which is the default."""
        if window:
            self._wait = BusyPoll(self._epoll, window, quiet=self._registered.fileno())
        else:
            self._wait = self._epoll.poll

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, call the callbacks of ready descriptors, and return asyncio's events."""
        events: list[tuple[selectors.SelectorKey, int]] = []
        for descriptor, ready in self._wait(None if timeout is None else max(0.0, timeout)):
            callbacks = self._callbacks.get(descriptor)
            if callbacks is None:  # asyncio's, or one whose callbacks another callback has just removed
                events = self._registered.select(0)
                continue
            # As in asyncio, an error or an end of the stream is news for both.
            if ready & ~select.EPOLLOUT and (reader := callbacks.get(select.EPOLLIN)):
                self._call(reader)
            if ready & ~select.EPOLLIN and (writer := callbacks.get(select.EPOLLOUT)):
                self._call(writer)
        return events

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 (as in asyncio: one failing callback does not end the loop)
            self._report(callback, error)

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.register`."""
        return self._registered.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.unregister`."""
        return self._registered.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector.modify`."""
        return self._registered.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """The descriptors that asyncio has registered."""
        return self._registered.get_map()

    def close(self) -> None:
        """Close the selector. Idempotent."""
        self._epoll.close()
        self._registered.close()


class EventLoop(asyncio.SelectorEventLoop):
    """The event loop of asyncio, with readers and writers that are called as soon as a descriptor is ready.

    They do not run in a `contextvars` context of their own, and debug mode does not report slow ones.
    """

    def __init__(self) -> None:
        self._direct = DirectSelector(self._report)
        self._spawning = 0
        self._children: list[asyncio.SubprocessTransport] = []
        self._reaping: asyncio.TimerHandle | None = None
        super().__init__(self._direct)

    def busy_poll(self, window: float) -> None:
        """Keep a core busy for this many seconds after each packet, which then meets no sleeping process.

        Args:
            window: Seconds. 0 turns it off.
        """
        self._direct.busy_poll(window)

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        """See `asyncio.loop.add_reader`."""
        self._direct.attend(_number(fd), select.EPOLLIN, partial(callback, *args) if args else callback)

    def remove_reader(self, fd: FileDescriptorLike) -> bool:
        """See `asyncio.loop.remove_reader`."""
        # asyncio's own as well, as of `sock_recv`
        return self._direct.disregard(_number(fd), select.EPOLLIN) or super().remove_reader(fd)

    def add_writer(self, fd: FileDescriptorLike, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        """See `asyncio.loop.add_writer`."""
        self._direct.attend(_number(fd), select.EPOLLOUT, partial(callback, *args) if args else callback)

    def remove_writer(self, fd: FileDescriptorLike) -> bool:
        """See `asyncio.loop.remove_writer`."""
        return self._direct.disregard(_number(fd), select.EPOLLOUT) or super().remove_writer(fd)

    async def subprocess_exec(self, protocol_factory: Callable[[], Any], *args: Any, **options: Any) -> Any:
        """See `asyncio.loop.subprocess_exec`. `reap_orphans` leaves the child alone."""
        self._spawning += 1
        try:
            transport, protocol = await super().subprocess_exec(protocol_factory, *args, **options)
            self._children = [*self._waited_for(), transport]
        finally:
            self._spawning -= 1
        return transport, protocol

    def reap_orphans(self) -> None:
        """Reap the children that have ended and that nobody here waits for.

        Process 1 adopts every orphan of its PID namespace: processes that a tool left in the background or that an
        application forgot. Each one that is not reaped keeps its process identifier, until the machine has none left.
        """
        if self._reaping is not None:
            self._reaping.cancel()
            self._reaping = None
        with contextlib.suppress(ChildProcessError):  # there are none at all
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                # The kernel reports the same child until it is reaped, so asyncio must reap its own one first.
                if self._spawning or any(child.get_pid() == ended.si_pid for child in self._waited_for()):
                    self._reaping = self.call_later(_PATIENCE, self.reap_orphans)
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)

    def _waited_for(self) -> list[asyncio.SubprocessTransport]:
        return [child for child in self._children if child.get_returncode() is None]

    def _report(self, callback: Callable[[], object], error: BaseException) -> None:
        self.call_exception_handler({"message": f"a callback failed: {callback!r}", "exception": error})


def run(main: Coroutine[Any, Any, _T], *, busy_poll: float = 0.0) -> _T:
    """`asyncio.run`, in an `EventLoop`.

    Args:
        main: What to run.
        busy_poll: See `EventLoop.busy_poll`.

    Returns:
        What it returns.
    """

    def make() -> EventLoop:
        loop = EventLoop()
        loop.busy_poll(busy_poll)
        return loop

    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(main)


def _number(fd: FileDescriptorLike) -> int:
    return fd if isinstance(fd, int) else fd.fileno()
