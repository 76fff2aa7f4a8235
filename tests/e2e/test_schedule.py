"""Faults in random order, drawn from a seed, under traffic: the short form of ``python -m lab schedule``.

A failing one reports the seed and the step. ``python -m lab schedule --seed N --faults K`` plays it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.schedule.command import play

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEEDS = (1, 2, 3)
FAULTS = 13


@pytest.fixture
def counted_lab(own_lab: Ladder) -> Iterator[Ladder]:
    """A laboratory whose services can be counted."""
    if type(own_lab.backend) is not NetnsBackend:
        pytest.skip("a schedule looks into its machines' processes, which namespaces alone show")
    own_lab.backend.counting = True
    yield own_lab
    own_lab.backend.counting = False


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_of_faults_leaves_everything_as_it_has_to_be(counted_lab: Ladder, seed: int) -> None:
    assert play(counted_lab, seed, FAULTS).complaints == []
