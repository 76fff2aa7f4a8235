from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES, LISTEN_BACKLOG, MAX_WAITING, Allowance, Deadlines


def test_the_defaults_are_those_of_the_specification() -> None:
    assert (
        Deadlines(exchange=10.0, frame=3.0, secure_module=5.0, rollback=30.0, silence=180.0, handshake=10.0)
        == DEFAULT_DEADLINES
    )
    assert (LISTEN_BACKLOG, MAX_WAITING) == (128, 256)


def test_a_slow_machine_scales_all_of_them() -> None:
    assert Deadlines().scaled(10.0) == Deadlines(100.0, 30.0, 50.0, 300.0, 1800.0, 100.0)


def test_what_is_saved_up_may_be_spent_at_once() -> None:
    allowance = Allowance(0.25, 0.5)
    assert not allowance.spend(0.25, 100.0)
    assert not allowance.spend(0.25, 100.0)
    assert allowance.spend(0.1, 100.0) == pytest.approx(0.4)  # a debt of 0.1 s takes 0.4 s at a quarter
    assert allowance.spend(0.0, 100.2) == pytest.approx(0.2)
    assert not allowance.spend(0.0, 100.4)


def test_no_more_is_saved_up_than_the_burst() -> None:
    allowance = Allowance(0.25, 0.5)
    assert not allowance.spend(0.5, 9999.0)
    assert allowance.spend(0.25, 9999.0) == pytest.approx(1.0)


@given(costs=st.lists(st.floats(0, 0.01), min_size=1, max_size=200))
def test_never_more_than_its_share_beyond_the_burst(costs: list[float]) -> None:
    allowance, now, spent = Allowance(0.25, 0.1), 0.0, 0.0
    for cost in costs:
        spent += cost
        now += cost
        now += allowance.spend(cost, now)
    assert spent <= 0.1 + 0.25 * now + 1e-6
