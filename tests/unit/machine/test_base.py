"""Both machines have the verbs of the protocol, with its parameters."""

from __future__ import annotations

import inspect

import pytest

from wgvsock.machine.base import Machine
from wgvsock.machine.linux import LinuxMachine
from wgvsock.testing.machine import MemoryMachine

VERBS = [name for name in vars(Machine) if not name.startswith("_")]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [LinuxMachine, MemoryMachine])
def test_each_verb_is_there_with_its_parameters(kind: type[Machine], verb: str) -> None:
    asked, there = (inspect.signature(getattr(one, verb)).parameters for one in (Machine, kind))
    assert [name.lstrip("_") for name in there] == list(asked)
    assert [one.kind for one in there.values()] == [one.kind for one in asked.values()]


def test_they_satisfy_it() -> None:
    machines: list[Machine] = [LinuxMachine(), MemoryMachine()]  # which mypy looks at
    assert len(machines) == 2
