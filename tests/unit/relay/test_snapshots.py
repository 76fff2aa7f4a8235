"""Readiness, and the components of a relay's."""

from __future__ import annotations

import itertools

import pytest

from wgvsock.relay.snapshots import Readiness, RelaySnapshot, State


@pytest.mark.parametrize("conditions", list(itertools.product([False, True], repeat=4)))
def test_an_enclave_is_ready_when_every_condition_holds(conditions: tuple[bool, bool, bool, bool]) -> None:
    assert Readiness(*conditions).ready == all(conditions)


def test_a_relay_without_enclaves_is_not_ready() -> None:
    assert not RelaySnapshot("relay", 1, State.READY, ()).ready


def test_the_states_have_distinct_words() -> None:
    assert len({state.value for state in State}) == len(State) == 7
