"""One change of an enclave at a time, and who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from wgvsock.relay.changes import Changes, Kind
from wgvsock.testing import without_waiting


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def subject(ended: list[str]) -> Changes:
    return Changes(ended.append)


async def work(seconds: float) -> None:
    await asyncio.sleep(seconds)


@without_waiting
async def test_a_change_is_present_until_it_ends(subject: Changes, ended: list[str]) -> None:
    change = subject.begin("one", Kind.START, work(2), places=(3, 4))
    assert (subject.of("one"), subject.of("two")) == (change, None)
    assert (subject.places, subject.tasks, subject.starting) == ({3, 4}, {change.task}, {})
    await change.task
    assert (subject.of("one"), subject.places, subject.tasks, ended) == (None, set(), set(), ["one"])


@without_waiting
async def test_one_that_takes_the_place_of_another_is_the_present_one(subject: Changes, ended: list[str]) -> None:
    first = subject.begin("one", Kind.REPLACE, work(2), places=(3,))
    second = subject.begin("one", Kind.STOP, work(4))
    assert (subject.of("one"), subject.places, subject.tasks) == (second, set(), {first.task, second.task})
    await first.task
    assert (subject.of("one"), ended) == (second, [])
    await second.task
    assert (subject.of("one"), ended) == (None, ["one"])


@without_waiting
async def test_all_are_cancelled(subject: Changes, ended: list[str]) -> None:
    tasks = [subject.begin(name, Kind.STOP, work(9)).task for name in ("one", "two")]
    subject.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert all(task.cancelled() for task in tasks)
    assert sorted(ended) == ["one", "two"]


@without_waiting
async def test_capacity_is_awaited_as_long_as_another_change_may_free_it(subject: Changes) -> None:
    got: list[tuple[str, bool, float]] = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def lacking(name: str, attempts: int) -> None:
        for _ in range(attempts):
            await asyncio.sleep(1)
            found = await subject.wait_for_capacity(name)
            got.append((name, found, round(loop.time() - began)))

    subject.begin("other", Kind.REPLACE, work(5))
    tasks = [subject.begin(name, Kind.REPLACE, lacking(name, 2)).task for name in ("one", "two")]
    await asyncio.gather(*tasks)
    # Both wait for the other one. Then "one" waits for "two", which has nobody to wait for, and so ends.
    assert sorted(got) == [("one", True, 5), ("one", True, 6), ("two", False, 6), ("two", True, 5)]


@without_waiting
async def test_a_change_that_ended_during_the_attempt_counts_once(subject: Changes) -> None:
    async def attempt() -> None:
        await asyncio.sleep(3)
        assert await subject.wait_for_capacity("one")
        assert not await subject.wait_for_capacity("one")

    subject.begin("other", Kind.STOP, work(1))
    await subject.begin("one", Kind.REPLACE, attempt()).task
