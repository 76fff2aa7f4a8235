from __future__ import annotations

import pytest

from lab import uplinks
from lab.schedule.faults import TABLES, TRAITS, USERSPACE, Fault, Readiness, Traits
from lab.schedule.site import MENDING, SCRIPTS


def test_every_fault_is_in_a_table_and_every_uplink_has_one() -> None:
    assert TRAITS.keys() | USERSPACE.keys() == set(Fault)
    assert TABLES.keys() == {"", *uplinks.MODES}


def test_without_a_kernel_s_uplink_there_is_none_of_its_faults() -> None:
    ours = {Fault.FOREIGN_TABLE, Fault.UPLINK_ADDRESS, Fault.ROUTE_GONE}  # what any program meets on its machine
    assert USERSPACE.keys() & SCRIPTS.keys() == ours
    assert USERSPACE.keys() - TRAITS.keys() == {Fault.ENGINE_KILLED}


@pytest.mark.parametrize("row", [*TRAITS.values(), *USERSPACE.values()])
def test_every_row_is_consistent(row: Traits) -> None:
    assert bool(row.cuts) == bool(row.why), "a cut has its reason, and nothing else has one"
    if row.readiness is Readiness.KEEPS:
        assert not row.gone
        assert not row.gap
    if row.readiness is Readiness.LOSES:
        assert row.reasons
        assert row.lasts, "there is time in which it has to be seen"


def test_what_only_a_program_can_end_lasts() -> None:
    assert MENDING.keys() <= SCRIPTS.keys()
    assert all(TRAITS[fault].lasts for fault in MENDING)
