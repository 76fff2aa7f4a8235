"""Restart policy and back-off."""

from __future__ import annotations

from typing import Literal

import pytest

from wgvsock.enclave.application.restarts import FIRST_PAUSE, LONGEST_PAUSE, STABLE, Restarts


@pytest.mark.parametrize(
    ("policy", "status", "again"),
    [
        ("never", 0, False),
        ("never", 1, False),
        ("on-failure", 0, False),
        ("on-failure", 137, True),
        ("always", 0, True),
        ("always", 1, True),
    ],
)
def test_who_is_started_again(policy: Literal["never", "on-failure", "always"], status: int, again: bool) -> None:
    assert (Restarts(policy, lambda: 0.0).pause(status, 0.0) is not None) is again


def test_pauses_double_up_to_the_longest_and_begin_anew_after_one_that_worked() -> None:
    restarts = Restarts("always", lambda: 0.0)
    pauses = [restarts.pause(1, 0.0) for _ in range(9)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert restarts.pause(1, STABLE) == FIRST_PAUSE
