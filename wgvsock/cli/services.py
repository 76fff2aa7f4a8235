"""Runs a service in the foreground: signals in, exit status out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from wgvsock.runtime import event_loop, memory
from wgvsock.runtime.process import release_signals

SignalHandlers = Mapping[signal.Signals, Callable[[], object]]


def run_service(start: Callable[[], tuple[Coroutine[Any, Any, int], SignalHandlers]], *, busy_poll_us: int = 0) -> int:
    """Run one service until it ends.

    Args:
        start: Makes the service inside the event loop. It returns what to run, and the handlers of its signals.
        busy_poll_us: Microseconds after each packet in which the process does not sleep.

    Returns:
        The exit status.
    """

    async def run() -> int:
        service, handlers = start()
        take_signals(handlers)
        memory.settle()
        return await service

    return event_loop.run(run(), busy_poll=busy_poll_us / 1e6)


def take_signals(handlers: SignalHandlers) -> None:
    """Make the running event loop handle signals, including those held back since the process started.

    As process 1 (in an enclave or a container) it also reaps orphaned processes.
    """
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    if os.getpid() == 1 and isinstance(loop, event_loop.EventLoop):
        loop.add_signal_handler(signal.SIGCHLD, loop.reap_orphans)
        loop.reap_orphans()
    release_signals()
