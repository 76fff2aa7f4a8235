from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors.generate import FOLDER
from wgvsock.wireguard.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW
from wgvsock.wireguard.replay import ReplayWindow

TABLE: dict[str, Any] = json.loads((FOLDER / "replay.json").read_text())


class NaiveWindow:
    """Remembers everything."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        if counter in self.seen or counter + REPLAY_WINDOW < max(self.seen, default=0):
            return False
        self.seen.add(counter)
        return True


def accepts(window: ReplayWindow, counter: int) -> bool:
    # receive.open_into refuses counters from REJECT_AFTER_MESSAGES on before it asks the window; so does the table.
    return counter < REJECT_AFTER_MESSAGES and window.accept(counter)


def test_linux_s_table() -> None:
    assert TABLE["window"] == REPLAY_WINDOW
    bases = {"0": 0, "T": REPLAY_WINDOW + 1, "4T": 4 * (REPLAY_WINDOW + 1), "R": REJECT_AFTER_MESSAGES}
    window = ReplayWindow()
    for number, (base, offset, accepted) in enumerate(TABLE["steps"]):
        assert accepts(window, bases[base] + offset) is accepted, f"step {number}: {base} {offset:+}"


@pytest.mark.parametrize("run", TABLE["runs"], ids=str)
def test_linux_s_runs(run: dict[str, Any]) -> None:
    first, last = run["counters"]["from"], run["counters"]["to"]
    step = 1 if last > first else -1
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in range(first, last + step, step))
    for counter, accepted in run["then"]:
        assert window.accept(counter) is accepted


JUMPS = st.one_of(
    st.integers(0, 200),
    st.integers(0, 3 * REPLAY_WINDOW),
    st.integers(-REPLAY_WINDOW - 130, 130),
    st.integers(0, 2**40),
)


@given(st.lists(JUMPS, max_size=200))
def test_agrees_with_a_set_that_remembers_everything(jumps: list[int]) -> None:
    window, naive = ReplayWindow(), NaiveWindow()
    for jump in jumps:
        counter = max(0, max(naive.seen, default=0) + jump) if jump < 0 else jump
        assert window.accept(counter) == naive.accept(counter)


@given(st.integers(0, 2**63), st.lists(st.integers(-REPLAY_WINDOW - 70, 2 * REPLAY_WINDOW), max_size=100))
def test_agrees_around_any_counter(start: int, offsets: list[int]) -> None:
    window, naive = ReplayWindow(), NaiveWindow()
    for offset in [0, *offsets]:
        counter = max(0, start + offset)
        assert window.accept(counter) == naive.accept(counter)


def test_an_old_counter_does_not_move_the_window() -> None:
    window = ReplayWindow()
    window.accept(100_000)
    assert not window.accept(1)
    assert window.accept(100_000 - REPLAY_WINDOW)
    assert not window.accept(100_000 - REPLAY_WINDOW - 1)
