from __future__ import annotations

import pytest

from lab.deadline import LONGEST_PAUSE, PATIENCE, Deadline, patiently
from lab.errors import LabTimeoutError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def deadline(seconds: float, clock: Clock, scale: float = 1.0) -> Deadline:
    return Deadline(seconds, scale=scale, clock=clock, sleep=clock.sleep)


def test_remaining_falls_to_zero_and_not_below() -> None:
    clock = Clock()
    until = deadline(2.0, clock)
    assert until.remaining == 2.0
    assert not until.expired
    clock.now += 5
    assert until.remaining == 0.0
    assert until.expired


def test_the_scale_stretches_it() -> None:
    clock = Clock()
    assert deadline(2.0, clock, scale=10).remaining == 20.0


def test_a_patient_one_takes_account_of_a_shared_machine() -> None:
    assert patiently(2.0).seconds == 2.0 * PATIENCE


def test_poll_returns_what_was_seen() -> None:
    clock = Clock()
    looks = iter([None, 0, "", "there"])
    assert deadline(2.0, clock).poll(lambda: next(looks), "it") == "there"


def test_poll_pauses_longer_and_longer_up_to_a_limit() -> None:
    clock = Clock()
    with pytest.raises(LabTimeoutError, match=r"waited 2\.0 s for the moon"):
        deadline(2.0, clock).poll(lambda: None, "the moon")
    assert clock.sleeps[:3] == [0.002, 0.004, 0.008]
    assert max(clock.sleeps) == LONGEST_PAUSE


def test_poll_looks_once_more_after_the_deadline() -> None:
    clock = Clock()
    until = deadline(1.0, clock)
    clock.now += 2
    looks = []

    def look() -> bool:
        looks.append(clock.now)
        return True

    assert until.poll(look, "it")
    assert len(looks) == 1


def test_what_happens_just_at_the_end_is_still_seen() -> None:
    clock = Clock()
    assert deadline(1.0, clock).poll(lambda: clock.now >= 101.0, "the last moment")
