"""Busy polling looks again and again within its window, and sleeps afterwards."""

from __future__ import annotations

import select
from typing import cast

import pytest

from wgvsock.runtime.busy_poll import BusyPoll
from wgvsock.testing import ManualClock


class ScriptedEpoll:
    """Has one event at a time. Each poll takes a tenth of a millisecond, a sleep its whole timeout."""

    def __init__(self, clock: ManualClock, due: float) -> None:
        self.clock, self.due = clock, due
        self.slept = 0
        self.asked = 0

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        self.asked += 1
        if timeout:
            self.slept += 1
            self.clock.advance(timeout)
        self.clock.advance(1e-4)
        return [(7, select.EPOLLIN)] if self.clock() >= self.due else []


@pytest.mark.parametrize(("window", "slept"), [(0.01, 0), (0.0001, 1)])
def test_it_sleeps_only_after_the_window(window: float, slept: int) -> None:
    clock = ManualClock(100.0)
    scripted = ScriptedEpoll(clock, due=0.0)
    wait = BusyPoll(cast("select.epoll", scripted), window, clock=clock)
    assert wait(1.0)  # begins the window
    scripted.due = clock() + 0.005
    assert wait(1.0)
    assert scripted.slept == slept


def test_a_timer_ends_the_waiting() -> None:
    clock = ManualClock(100.0)
    scripted = ScriptedEpoll(clock, due=0.0)
    wait = BusyPoll(cast("select.epoll", scripted), 10.0, clock=clock)
    wait(1.0)
    scripted.due = clock() + 5.0
    before = clock()
    assert wait(0.01) == []
    assert clock() - before < 0.05


def test_what_is_no_packet_begins_no_window() -> None:
    clock = ManualClock(100.0)
    scripted = ScriptedEpoll(clock, due=0.0)
    wait = BusyPoll(cast("select.epoll", scripted), 10.0, quiet=7, clock=clock)
    assert wait(1.0)
    scripted.due = clock() + 0.005
    wait(1.0)
    assert scripted.slept == 1
