"""An event loop in which waiting takes no time: when nothing is ready, its clock jumps to the next timer.

It does not jump while a thread is working, as a timer that limits the work would always fire first.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

Arguments = ParamSpec("Arguments")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _JumpingSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and adds up how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None or self.threads:  # without any timer, only another thread or process can cause progress
            events = super().select(timeout)
        if not events:
            self.waited += max(0.0, timeout or 0.0)
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop for tests. Its `time` starts at 1000 seconds and moves only by waiting."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds: 1000, plus the time spent waiting."""
        return 1000.0 + self._jumping.waited

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """See `asyncio.loop.run_in_executor`. The clock does not jump until the work is done."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.threads += 1
        future.add_done_callback(self._thread_is_done)
        return future

    def _thread_is_done(self, _: asyncio.Future[Any]) -> None:
        self._jumping.threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 (asyncio's)
        """Join the threads without asyncio's time limit (since Python 3.12), whose timer would fire at once."""
        await super().shutdown_default_executor()


def without_waiting(test: Callable[Arguments, Coroutine[Any, Any, None]]) -> Callable[Arguments, None]:
    """Turn a coroutine function into an ordinary test that runs in a `JumpingLoop`."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
