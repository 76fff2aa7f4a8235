"""Ways of waiting that the services share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def first_of(*ends: Coroutine[Any, Any, _T]) -> _T:
    """Wait until one coroutine ends, cancel the others, and return or raise what the first one did."""
    tasks = [asyncio.ensure_future(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    # Several may have ended in the same iteration of the loop: an error among them takes precedence.
    results = [task.result() for task in tasks if task in done]
    return results[0]


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event and clear it, but no longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
            event.clear()
    except TimeoutError:
        pass


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait until a coroutine ends, even if this is cancelled meanwhile. The cancellation takes effect after that."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
