from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.schedule.faults import TRAITS, USERSPACE, Fault, Target
from lab.schedule.plan import Step, goes_with, plan

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.integers(0, 80), st.integers(1, 3))
def test_a_seed_is_a_schedule(seed: int, faults: int, enclaves: int) -> None:
    steps = plan(seed, faults, enclaves=enclaves)
    assert steps == plan(seed, faults, enclaves=enclaves)
    assert [step.number for step in steps] == list(range(1, faults + 1))
    assert all(step.enclave < enclaves for step in steps)


@given(SEEDS, st.integers(0, 60))
def test_a_shorter_one_is_the_beginning_of_a_longer_one(seed: int, faults: int) -> None:
    assert plan(seed, 60)[:faults] == plan(seed, faults)


@given(SEEDS)
def test_sixty_hold_every_kind_of_the_table(seed: int) -> None:
    assert {step.fault for step in plan(seed, 60, launched=True)} == TRAITS.keys()
    assert {step.fault for step in plan(seed, 60, launched=True, table=USERSPACE)} == USERSPACE.keys()


@given(SEEDS)
def test_a_step_s_traits_are_those_of_its_table(seed: int) -> None:
    for step in plan(seed, 60, table=USERSPACE):
        assert step.traits == tuple(USERSPACE[fault] for fault in step.faults)
        assert step.beside is None or goes_with(step.fault, step.beside, USERSPACE)


@given(SEEDS, st.integers(1, 3))
def test_the_launched_enclave_s_image_is_replaced_and_nobody_else_s(seed: int, enclaves: int) -> None:
    steps = plan(seed, 80, enclaves=enclaves, launched=True)
    assert {step.enclave for step in steps if step.fault is Fault.IMAGE_REPLACED} == {enclaves}
    assert all(step.enclave < enclaves for step in steps if step.fault is not Fault.IMAGE_REPLACED)
    assert Fault.IMAGE_REPLACED not in {step.fault for step in plan(seed, 80, enclaves=enclaves)}


def test_an_engine_may_die_while_something_else_lasts() -> None:
    lasting = {Fault.RELAY_FROZEN, Fault.AGENT_FROZEN, Fault.STREAM_HELD, Fault.MODULE_DEBUG, Fault.ROUTE_GONE}
    assert all(goes_with(fault, Fault.ENGINE_KILLED, USERSPACE) for fault in lasting)


def test_a_relay_may_end_and_a_machine_may_change_while_an_image_is_replaced() -> None:
    company = {other for other in TRAITS if goes_with(Fault.IMAGE_REPLACED, other)}
    assert {Fault.RELAY_KILLED, Fault.MTU_RELOADED, Fault.REATTESTED, Fault.RULES_FLUSHED} <= company
    assert not company & {Fault.STREAM_CUT, Fault.AGENT_KILLED, Fault.TABLE_DELETED}  # of enclaves that it is not


def test_other_seeds_are_other_schedules() -> None:
    orders = {tuple(step.fault for step in plan(seed, 12)) for seed in range(20)}
    assert len(orders) == 20


def test_both_enclaves_are_struck() -> None:
    assert {step.enclave for step in plan(0, 60, enclaves=2)} == {0, 1}


@given(SEEDS)
def test_what_happens_beside_something_goes_with_it(seed: int) -> None:
    for step in plan(seed, 60):
        assert step.beside is None or goes_with(step.fault, step.beside)
        assert str(step).count(" + ") == len(step.faults) - 1 == len(step.traits) - 1


@pytest.mark.parametrize("lasting", [fault for fault in TRAITS if TRAITS[fault].lasts])
def test_company_is_done_at_once_and_strikes_something_else(lasting: Fault) -> None:
    for other in TRAITS:
        if goes_with(lasting, other):
            assert not TRAITS[other].lasts
            assert TRAITS[other].target is not TRAITS[lasting].target


def test_nobody_gives_an_order_to_a_frozen_process() -> None:
    assert not any(goes_with(Fault.RELAY_FROZEN, other) for other in TRAITS if TRAITS[other].target is Target.AGENT)
    assert goes_with(Fault.RELAY_FROZEN, Fault.RULES_FLUSHED)
    assert goes_with(Fault.AGENT_FROZEN, Fault.RELAY_KILLED)
    assert not goes_with(Fault.RULES_FLUSHED, Fault.RELAY_KILLED)  # over at once: there is no "beside" it
    assert not goes_with(Fault.MODULE_DEBUG, Fault.RELAY_KILLED)


def test_about_as_often_as_said() -> None:
    lasting = [step for seed in range(50) for step in plan(seed, 60) if step.traits[0].lasts]
    assert 0.2 < sum(step.beside is not None for step in lasting) / len(lasting) < 0.5


def test_what_strikes_one_enclave_is_nothing_to_its_neighbour() -> None:
    step = Step(1, Fault.STREAM_HELD, 1, Fault.FORWARDING_OFF)
    assert step.traits_for(1) == (TRAITS[Fault.STREAM_HELD], TRAITS[Fault.FORWARDING_OFF])
    assert step.traits_for(0) == (TRAITS[Fault.FORWARDING_OFF],)
