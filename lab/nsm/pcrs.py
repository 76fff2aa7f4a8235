"""The module's PCR bank: 32 SHA-384 registers that can only be extended, until they are locked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_PCRS: Final = 32
PCR_SIZE: Final = 48
BOOT_PCRS: Final = 16
"""PCR0 to PCR15 are measured and locked before the enclave starts. The others are for the enclave."""


class NsmRefusalError(Exception):
    """The module answers with an error.

    Args:
        name: The error's name in the NSM API, such as ``"ReadOnlyIndex"``.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(slots=True)
class _Register:
    value: bytes = bytes(PCR_SIZE)
    locked: bool = False


class PcrBank:
    """The registers of one boot.

    Args:
        measurements: The boot's measurements, 48 bytes each, by index below 16. The others are zero.
    """

    def __init__(self, measurements: Mapping[int, bytes]) -> None:
        self._registers = [_Register(measurements.get(index, bytes(PCR_SIZE))) for index in range(MAX_PCRS)]
        self.lock_range(BOOT_PCRS)

    def describe(self, index: int) -> tuple[bool, bytes]:
        """Return lock and value."""
        register = self._at(index)
        return register.locked, register.value

    def extend(self, index: int, data: bytes) -> bytes:
        """Extend a register, and return its new value: SHA384(old || data)."""
        register = self._unlocked(index)
        register.value = hashlib.sha384(register.value + data).digest()
        return register.value

    def lock(self, index: int) -> None:
        """Lock one register, once."""
        self._unlocked(index).locked = True

    def lock_range(self, count: int) -> None:
        """Lock every register below `count`. Locked ones stay locked."""
        if not 0 <= count <= MAX_PCRS:
            raise NsmRefusalError("InvalidIndex")
        for register in self._registers[:count]:
            register.locked = True

    def locked(self) -> dict[int, bytes]:
        """Return the registers that a document contains."""
        return {index: register.value for index, register in enumerate(self._registers) if register.locked}

    def _at(self, index: int) -> _Register:
        if not 0 <= index < MAX_PCRS:
            raise NsmRefusalError("InvalidIndex")
        return self._registers[index]

    def _unlocked(self, index: int) -> _Register:
        register = self._at(index)
        if register.locked:
            raise NsmRefusalError("ReadOnlyIndex")
        return register


def lab_measurements(image: str, instance_id: str, role_arn: str | None = None) -> dict[int, bytes]:
    """Return the boot measurements of an invented image, with PCR3 and PCR4 computed as in a real boot."""
    measurements = {index: hashlib.sha384(f"{image} PCR{index}".encode()).digest() for index in (0, 1, 2)}
    measurements[4] = hashlib.sha384(bytes(PCR_SIZE) + instance_id.encode()).digest()
    if role_arn is not None:
        measurements[3] = hashlib.sha384(bytes(PCR_SIZE) + role_arn.encode()).digest()
    return measurements
