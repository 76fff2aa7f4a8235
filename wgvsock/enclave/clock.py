"""The enclave's wall clock: measured against the relay's, and set if the image says so.

An enclave takes its time from the hypervisor at boot. From then on its clock drifts, with no service to correct it. The
provisioning request carries the relay's time, signed and sealed. Whoever transports the request can only delay it, and
no longer than an exchange may take.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from wgvsock.errors import SystemSetupError
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.telemetry.schema import CLOCK_SUSPECT

if TYPE_CHECKING:
    from wgvsock.machine.base import EnclaveMachine

_WORTH_IT: Final = 0.1
"""Seconds. A smaller difference is ignored, because the request itself takes about as long to arrive."""

_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000_000_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClockSettings:
    """``[clock]`` of ``enclave.toml``.

    Attributes:
        set: Where the clock takes its time from: ``relay`` (once a relay has proved itself), ``ptp`` (the hypervisor's
            PTP clock, /dev/ptp0), or ``never``.
    """

    set: Literal["never", "relay", "ptp"] = "never"


class EnclaveClock:
    """Compares the clock with the relay's, and sets it.

    Args:
        machine: The machine whose clock it is.
        settings: Whether to set it.

    Attributes:
        offset: Seconds by which the clock was ahead of the relay's when a relay last told its time, corrected for later
            steps. None if no relay did.
    """

    def __init__(self, machine: EnclaveMachine, settings: ClockSettings) -> None:
        self.offset: float | None = None
        self._machine = machine
        self._settings = settings
        self._heard: tuple[int, float] | None = None  # the relay's time in nanoseconds, and when it was received

    def hear(self, epoch_ms: int) -> None:
        """Take a relay's time, in milliseconds of Unix time."""
        self._heard = epoch_ms * _MILLISECOND, self._machine.monotonic()
        self.offset = (self._machine.wall_clock() - epoch_ms * _MILLISECOND) / _SECOND
        if abs(self.offset) >= CLOCK_SUSPECT:
            fix = 'set [clock] set = "ptp" or "relay" in the image\'s enclave.toml, or correct the relay\'s clock'
            _log.warning("this clock and the relay's differ", extra=fields(seconds=self.offset, fix=fix))

    def proved(self) -> None:
        """Trust the last time that was heard: its relay has proved itself."""
        if self._settings.set == "relay" and self._heard is not None:
            told, at = self._heard
            self._set(told + round((self._machine.monotonic() - at) * _SECOND), "relay")
        else:
            self.follow_hardware()

    def follow_hardware(self) -> None:
        """Set the clock to the hypervisor's, if configured."""
        if self._settings.set != "ptp":
            return
        try:
            self._set(self._machine.hardware_clock(), "ptp")
        except SystemSetupError as error:
            _log.error("the clock is not set", extra=error_fields(error))

    def _set(self, wanted: int, source: str) -> None:
        step = (wanted - self._machine.wall_clock()) / _SECOND
        if abs(step) < _WORTH_IT:
            return
        try:
            self._machine.set_wall_clock(wanted)
        except SystemSetupError as error:
            _log.error("the clock is not set", extra=error_fields(error))
            return
        if self.offset is not None:
            self.offset += step
        _log.warning("the clock was set", extra=fields(seconds=step, source=source))
