"""Waiting for the first of several, for an event, and for what must not be interrupted."""

from __future__ import annotations

import asyncio

import pytest

from wgvsock.runtime.tasks import first_of, uninterrupted, wait_for_event
from wgvsock.testing import without_waiting


@without_waiting
async def test_the_first_result_counts_and_the_others_are_stopped() -> None:
    stopped = asyncio.Event()

    async def quick() -> int:
        await asyncio.sleep(1)
        return 7

    async def slow() -> int:
        try:
            await asyncio.sleep(100)
        finally:
            stopped.set()
        return 8

    assert await first_of(slow(), quick()) == 7
    assert stopped.is_set()


@without_waiting
async def test_the_first_error_is_raised() -> None:
    async def fails() -> int:
        raise ValueError("no")

    async def never() -> int:
        await asyncio.Event().wait()
        return 0

    with pytest.raises(ValueError, match="no"):
        await first_of(never(), fails())


@without_waiting
async def test_an_error_counts_before_a_result_of_the_same_turn() -> None:
    async def result() -> int:
        return 1

    async def fails() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await first_of(result(), fails())


@without_waiting
async def test_cancelling_stops_all() -> None:
    stopped: list[int] = []

    async def waits(number: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(number)
        return number

    task = asyncio.ensure_future(first_of(waits(1), waits(2)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(stopped) == [1, 2]


@without_waiting
async def test_an_event_is_consumed() -> None:
    event = asyncio.Event()
    event.set()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await wait_for_event(event, 10)
    assert loop.time() == began
    assert not event.is_set()


@without_waiting
async def test_without_the_event_the_time_passes() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await wait_for_event(asyncio.Event(), 10)
    assert loop.time() == pytest.approx(began + 10)


@without_waiting
async def test_what_must_not_be_interrupted_ends_before_a_cancellation_takes_effect() -> None:
    steps: list[str] = []

    async def work() -> int:
        for step in ("first", "second"):
            await asyncio.sleep(10)
            steps.append(step)
        return 7

    assert await uninterrupted(work()) == 7
    steps.clear()
    task = asyncio.ensure_future(uninterrupted(work()))
    for _ in range(2):
        await asyncio.sleep(1)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["first", "second"]


@without_waiting
async def test_an_error_of_what_must_not_be_interrupted_is_not_lost() -> None:
    async def fails() -> None:
        await asyncio.sleep(10)
        raise ValueError("no")

    task = asyncio.ensure_future(uninterrupted(fails()))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(ValueError, match="no"):
        await task
