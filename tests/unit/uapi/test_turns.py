from __future__ import annotations

import asyncio

import pytest

from wgvsock.testing import ManualClock
from wgvsock.uapi.turns import TURN, Turns


@pytest.mark.asyncio
async def test_others_get_the_loop_when_a_turn_is_over_and_not_before() -> None:
    clock = ManualClock()
    turns = Turns(clock)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(10):
        await turns.pause()
    assert others == 0
    for expected in (1, 2, 3):
        clock.advance(1.1 * TURN)
        await turns.pause()
        assert others == expected
        await turns.pause()
        assert others == expected, "a new turn has begun"
    task.cancel()
