"""The kernel's wall clock, and the PTP clock that a hypervisor offers its guests (Linux's ptp_kvm and the like)."""

from __future__ import annotations

import os
import time
from typing import Final

from wgvsock.system.errors import ClockError

PTP_DEVICE: Final = "/dev/ptp0"


def set_wall_clock(unix_time: int) -> None:
    """Set CLOCK_REALTIME to a Unix time in nanoseconds (clock_settime(2)).

    Raises:
        ClockError: The kernel refused: setting the clock needs CAP_SYS_TIME.
    """
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time)
    except OSError as error:
        raise ClockError(
            "cannot set the clock", why=error.strerror or str(error), fix='run the agent as root, or set = "never"'
        ) from error


def read_hardware_clock(path: str = PTP_DEVICE) -> int:
    """The time of a PTP clock, as Unix time in nanoseconds.

    Raises:
        ClockError: The clock does not exist or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return time.clock_gettime_ns(dynamic_clock(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ClockError(
            f"cannot read the hypervisor's clock {path}",
            why=error.strerror or str(error),
            fix="use a kernel with the hypervisor's PTP driver",
        ) from error


def dynamic_clock(descriptor: int) -> int:
    """The clock id of an open clock device (clock_getcpuclockid(3), Linux's FD_TO_CLOCKID)."""
    return (~descriptor << 3) | 3
