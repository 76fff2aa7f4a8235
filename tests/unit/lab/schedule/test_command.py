from __future__ import annotations

import pytest

from lab.schedule.command import summary
from lab.schedule.run import Outcome


def test_a_schedule_that_went_well() -> None:
    assert summary(3, 60, Outcome(steps=60, requests=900), enclaves=2) == [
        "60 of 60 faults, 900 new connections went well",
        "all as required, nothing is left behind",
    ]


def test_one_that_did_not_says_where_and_how_to_see_it_again() -> None:
    lines = summary(3, 60, Outcome([(7, "cut: egress tcp")], steps=7), enclaves=2)
    assert lines[0].startswith("7 of 60 faults")
    assert "FAILED at fault 7: cut: egress tcp" in lines
    assert "python -m lab schedule --seed 3 --faults 7 --enclaves 2" in lines[-1]


def test_what_is_left_in_the_end_takes_the_whole_schedule() -> None:
    lines = summary(3, 12, Outcome([(0, "leak: /files")], steps=12), enclaves=1)
    assert "FAILED at the end: leak: /files" in lines
    assert "--seed 3 --faults 12 --enclaves 1" in lines[-1]


def test_how_to_see_it_again_says_which_uplink_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK", "userspace")
    lines = summary(3, 12, Outcome([(4, "cut: egress udp")], steps=4), enclaves=1)
    assert lines[-1] == "again: UPLINK=userspace python -m lab schedule --seed 3 --faults 4 --enclaves 1"
