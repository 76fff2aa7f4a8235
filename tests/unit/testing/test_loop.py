import asyncio
import selectors
import socket
import threading
import time
from typing import Any

import pytest

from wgvsock.testing.loop import JumpingLoop, without_waiting


@without_waiting
async def test_an_hour_passes_at_once_and_exactly() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    virtual, real = loop.time(), time.monotonic()
    await asyncio.sleep(3600)
    assert 3600 <= loop.time() - virtual < 3601
    assert time.monotonic() - real < 1800


@without_waiting
async def test_what_is_ready_comes_before_any_timer() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.send(b"ready")
        started = loop.time()
        assert await asyncio.wait_for(loop.sock_recv(left, 10), 5) == b"ready"
        assert loop.time() == started


@without_waiting
async def test_without_any_timer_it_waits_for_a_thread() -> None:
    assert await asyncio.to_thread(lambda: "done") == "done"


def test_a_timer_that_limits_a_thread_s_work_is_not_jumped_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's work lasts until the loop really waits. A loop that jumps instead ends it after "5 seconds"."""
    waiting = threading.Event()
    select = selectors.DefaultSelector.select

    def notice(self: selectors.DefaultSelector, timeout: float | None = None) -> Any:
        if timeout != 0:
            waiting.set()
        return select(self, timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", notice)

    @without_waiting
    async def limited() -> None:
        assert await asyncio.wait_for(asyncio.to_thread(waiting.wait), 5)

    limited()


def test_a_failure_inside_is_a_failure_outside() -> None:
    @without_waiting
    async def failing() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing()
