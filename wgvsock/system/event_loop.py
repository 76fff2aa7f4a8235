"""An event loop whose readers are called straight out of epoll.

Between a descriptor that is ready and its callback asyncio makes an event, a list, a handle and a queue of handles. In
a process that is busy this takes a few microseconds; in one that has slept, with none of it left in the caches, more
than thirty, and a ping meets it four times (docs/performance.md). So what `EventLoop.add_reader` is given is called
from within the wait. All else is asyncio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")


class DirectSelector(selectors.BaseSelector):
    """Waits for two kinds of descriptors: those with a callback of their own, and those that asyncio has registered.

    Args:
        report: Told which callback has failed, and what it raised.
    """

    def __init__(self, report: Callable[[Callable[[], object], BaseException], None]) -> None:
        self._report = report
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._registered = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._epoll.register(self._registered, select.EPOLLIN)  # readable when one of the others is ready

    def attend(self, descriptor: int, callback: Callable[[], object]) -> None:
        """Call this from now on whenever the descriptor is readable; it replaces an earlier callback.

        Raises:
            OSError: There is no such descriptor, or it cannot be waited for.
        """
        self.disregard(descriptor)
        self._epoll.register(descriptor, select.EPOLLIN)
        self._callbacks[descriptor] = callback

    def disregard(self, descriptor: int) -> bool:
        """Call nothing for it any more; whether there was a callback."""
        if self._callbacks.pop(descriptor, None) is None:
            return False
        with contextlib.suppress(OSError):  # it was closed first, and epoll has forgotten it
            self._epoll.unregister(descriptor)
        return True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, call the callbacks of what is readable, and return the rest."""
        events: list[tuple[selectors.SelectorKey, int]] = []
        for descriptor, _ in self._epoll.poll(None if timeout is None else max(0.0, timeout)):
            callback = self._callbacks.get(descriptor)
            if callback is None:  # asyncio's, or one whose callback an earlier one has just taken away
                events = self._registered.select(0)
                continue
            try:
                callback()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (as in asyncio: one failing callback does not end the loop)
                self._report(callback, error)
        return events

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
        """What asyncio has registered."""
        return self._registered.get_map()

    def close(self) -> None:
        """Wait for nothing any more; idempotent."""
        self._epoll.close()
        self._registered.close()


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, with readers that are called in the moment in which their descriptor is known to be ready.

    They run in no `contextvars` context of their own, and slow ones are not reported in debug mode.
    """

    def __init__(self) -> None:
        self._direct = DirectSelector(self._report)
        super().__init__(self._direct)

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        """See `asyncio.loop.add_reader`."""
        self._direct.attend(_number(fd), partial(callback, *args) if args else callback)

    def remove_reader(self, fd: FileDescriptorLike) -> bool:
        """See `asyncio.loop.remove_reader`."""
        return self._direct.disregard(_number(fd)) or super().remove_reader(fd)  # asyncio's own, as of `sock_recv`

    def _report(self, callback: Callable[[], object], error: BaseException) -> None:
        self.call_exception_handler({"message": f"a reader failed: {callback!r}", "exception": error})


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, in an `EventLoop`."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(main)


def _number(fd: FileDescriptorLike) -> int:
    return fd if isinstance(fd, int) else fd.fileno()
