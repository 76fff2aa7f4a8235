"""Each machine has the verbs of its protocol, with their parameters."""

from __future__ import annotations

import inspect

import pytest

from wgvsock.machine.base import EnclaveMachine, Machine, RelayMachine
from wgvsock.machine.enclave import LinuxEnclaveMachine
from wgvsock.machine.relay import LinuxRelayMachine
from wgvsock.testing.machine import MemoryMachine

PAIRS = [
    (EnclaveMachine, LinuxEnclaveMachine),
    (RelayMachine, LinuxRelayMachine),
    (EnclaveMachine, MemoryMachine),
    (RelayMachine, MemoryMachine),
]
VERBS = [
    pytest.param(asked, kind, verb, id=f"{kind.__name__}-{verb}")
    for asked, kind in PAIRS
    for verb in (*vars(Machine), *vars(asked))
    if not verb.startswith("_")
]


@pytest.mark.parametrize(("protocol", "kind", "verb"), VERBS)
def test_each_verb_is_there_with_its_parameters(protocol: type[Machine], kind: type[Machine], verb: str) -> None:
    asked, there = (inspect.signature(getattr(one, verb)).parameters for one in (protocol, kind))
    assert [name.lstrip("_") for name in there] == list(asked)
    assert [one.kind for one in there.values()] == [one.kind for one in asked.values()]


def test_they_satisfy_it() -> None:
    enclaves: list[EnclaveMachine] = [LinuxEnclaveMachine(), MemoryMachine()]  # which mypy looks at
    relays: list[RelayMachine] = [LinuxRelayMachine(), MemoryMachine()]
    assert len(enclaves) == len(relays)
