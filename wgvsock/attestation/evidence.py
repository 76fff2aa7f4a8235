"""What a refused document says next to what is allowed, PCR by PCR. It informs the operator and decides nothing.

"Not allowed" alone does not help the operator on call. The PCR that differs, its measured value and the allowed one
tell a forgotten policy update from an attack.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

AllowedSet: TypeAlias = tuple[str, Mapping[int, bytes]]
"""A set's name (or "") and its values by index, 48 bytes each."""


@dataclass(frozen=True, slots=True)
class Register:
    """One PCR next to the value that is expected of it.

    Attributes:
        index: Number of the PCR.
        measured: Its 48 bytes, or None if the document lacks it.
        allowed: The 48 bytes that are expected.
    """

    index: int
    measured: bytes | None
    allowed: bytes

    @property
    def matches(self) -> bool:
        """Whether it holds the expected value."""
        return self.measured is not None and hmac.compare_digest(self.measured, self.allowed)

    @property
    def name(self) -> str:
        """The usual name: ``PCR0``."""
        return f"PCR{self.index}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a refused document.

    Attributes:
        document: Its bytes as received. Empty if a new policy refused an enclave that was attested before.
        module_id: The module that signed it, or None if no genuine module is known to have done so.
        pcrs: The locked PCRs, 48 bytes each. Empty if `module_id` is None.
        nearest: Name of the allowed set from which it differs in the fewest PCRs, or "" if that set has no name.
        sets: How many sets the policy allows.
        registers: The PCRs of that set, and the others that are expected of this enclave. Empty if `module_id` is None.
    """

    document: bytes = field(repr=False, default=b"")
    module_id: str | None = None
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    nearest: str = ""
    sets: int = 0
    registers: tuple[Register, ...] = ()

    @property
    def differing(self) -> tuple[Register, ...]:
        """The PCRs that do not hold the expected value."""
        return tuple(register for register in self.registers if not register.matches)

    def plain(self) -> dict[str, Any]:
        """As JSON values: which set was compared, and each of its PCRs with the measured and the allowed value."""
        registers = [
            {
                "pcr": register.name,
                "measured": None if register.measured is None else register.measured.hex(),
                "allowed": register.allowed.hex(),
                "equal": register.matches,
            }
            for register in self.registers
        ]
        return {"set": self.nearest, "sets": self.sets, "registers": registers}


def compare(pcrs: Mapping[int, bytes], wanted: Mapping[int, bytes]) -> tuple[Register, ...]:
    """Every expected PCR (48 bytes each), by index, next to what was measured."""
    return tuple(Register(index, pcrs.get(index), value) for index, value in sorted(wanted.items()))


def nearest(pcrs: Mapping[int, bytes], sets: Iterable[AllowedSet]) -> AllowedSet:
    """Find the set that differs in the fewest PCRs.

    Args:
        pcrs: The measured values by index, 48 bytes each.
        sets: The allowed sets.

    Returns:
        The first such set, or an empty one without a name if there are no sets.
    """
    return min(sets, key=lambda one: sum(not each.matches for each in compare(pcrs, one[1])), default=("", {}))


def difference(pcrs: Mapping[int, bytes], sets: list[AllowedSet]) -> str:
    """Describe in one line how the measurements differ from the nearest set: ``PCR0 and PCR2 differ from …``.

    Args:
        pcrs: The measured values by index, 48 bytes each.
        sets: The allowed sets.
    """
    name, values = nearest(pcrs, sets)
    names = [register.name for register in compare(pcrs, values) if not register.matches]
    if not names:
        return "there is no allowed set"
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    quoted = f' "{name}"' if name else ""
    which = f"the allowed set{quoted}" if len(sets) == 1 else f"the nearest of {len(sets)} allowed sets{quoted}"
    return f"{listed} {'differs' if len(names) == 1 else 'differ'} from {which}"
