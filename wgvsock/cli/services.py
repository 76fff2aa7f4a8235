"""Runs a service in the foreground: signals in, exit status out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from wgvsock.system import event_loop, memory

SignalHandlers = Mapping[signal.Signals, Callable[[], None]]


def run_service(start: Callable[[], tuple[Coroutine[Any, Any, int], SignalHandlers]]) -> int:
    """Run one service until it ends.

    Args:
        start: Makes the service, inside the event loop: what to run, and what its signals do.
    """

    async def run() -> int:
        loop = asyncio.get_running_loop()
        service, handlers = start()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        memory.settle()
        return await service

    return event_loop.run(run())
