"""Readiness needs all three conditions."""

from __future__ import annotations

import itertools
import json
from http import HTTPStatus

import pytest

from wgvsock.relay.health import Readiness, State, live


@pytest.mark.parametrize("conditions", list(itertools.product([False, True], repeat=3)))
def test_all_conditions_have_to_hold(conditions: tuple[bool, bool, bool]) -> None:
    readiness = Readiness(*conditions)
    assert readiness.ready == all(conditions)
    answer = readiness.answer()
    assert answer.status == (HTTPStatus.OK if all(conditions) else HTTPStatus.SERVICE_UNAVAILABLE)
    body = json.loads(answer.body)
    assert body["schema"] == "wgvsock/v1"
    assert (body["attested"], body["handshake"], body["rules"]) == conditions


def test_alive() -> None:
    assert json.loads(live().body)["live"] is True


def test_the_states_have_distinct_words() -> None:
    assert len({state.value for state in State}) == 5
