"""From a seed to a list of faults: a pure function, so that a schedule can be played again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from lab.schedule.faults import TRAITS, Fault, Target, Traits

BESIDE: Final = 0.4
"""How often another fault happens while one lasts."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule.

    Attributes:
        number: From 1.
        fault: What happens.
        enclave: The affected enclave, counted from 0. Irrelevant for what the machine and the Relay share.
        beside: Another fault of the same enclave while it lasts.
        table: The traits of every fault.
    """

    number: int
    fault: Fault
    enclave: int
    beside: Fault | None = None
    table: Mapping[Fault, Traits] = field(default_factory=lambda: TRAITS, repr=False)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in it."""
        return (self.fault,) if self.beside is None else (self.fault, self.beside)

    @property
    def traits(self) -> tuple[Traits, ...]:
        """The traits of each fault."""
        return tuple(self.table[fault] for fault in self.faults)

    def traits_for(self, enclave: int) -> tuple[Traits, ...]:
        """Return what may affect an enclave: a neighbour of the target is affected only by what they share."""
        return tuple(row for row in self.traits if enclave == self.enclave or not row.alone)

    def __str__(self) -> str:
        return " + ".join(self.faults)


def plan(
    seed: int,
    faults: int,
    *,
    enclaves: int = 1,
    launched: bool = False,
    table: Mapping[Fault, Traits] = TRAITS,
) -> list[Step]:
    """Return the schedule of a seed. A shorter one is the beginning of a longer one.

    Kinds are drawn like cards: each comes once before one is repeated, so that sixty faults include every kind.

    Args:
        seed: Any number.
        faults: Number of steps.
        enclaves: Number of enclaves in the laboratory that run independently.
        launched: Whether there is one more, which the Relay launches. Only this one has an image.
        table: The faults that are drawn, and their traits.
    """
    draw = random.Random(seed)
    kinds = [fault for fault in Fault if fault in table]
    deck: list[Fault] = []
    steps: list[Step] = []
    for number in range(1, faults + 1):
        if not deck:
            deck = [fault for fault in kinds if launched or table[fault].target is not Target.IMAGE]
            draw.shuffle(deck)
        fault = deck.pop()
        enclave = draw.randrange(enclaves)
        if table[fault].target is Target.IMAGE:
            enclave = enclaves
        companions = [other for other in kinds if goes_with(fault, other, table)]
        companion = draw.choice(companions) if companions and draw.random() < BESIDE else None
        steps.append(Step(number, fault, enclave, companion, table))
    return steps


def goes_with(lasting: Fault, other: Fault, table: Mapping[Fault, Traits] = TRAITS) -> bool:
    """Return whether a fault can happen while another one lasts: it ends at once, and affects something else.

    A stopped process handles nothing, so no order is sent to it. And a module's fault concerns one attestation, which a
    restart would change.
    """
    ours, theirs = table[lasting], table[other]
    if not ours.lasts or theirs.lasts or ours.target is theirs.target:
        return False
    if lasting is Fault.RELAY_FROZEN:
        return theirs.target in {Target.STREAM, Target.MACHINE, Target.ENGINE}
    if lasting is Fault.AGENT_FROZEN:
        return theirs.target in {Target.STREAM, Target.MACHINE, Target.RELAY, Target.ENGINE}
    if Target.IMAGE in {
        ours.target,
        theirs.target,
    }:  # the launched enclave's stream and module are out of the laboratory's reach
        return lasting is Fault.IMAGE_REPLACED and not theirs.alone
    return ours.target is not Target.MODULE or theirs.target in {Target.MACHINE, Target.ENGINE}
