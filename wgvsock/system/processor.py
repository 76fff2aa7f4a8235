"""The processor time that a machine has used, from ``/proc/stat`` (proc_stat(5)), and that this process has used."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STAT: Final = Path("/proc/stat")

_BUSY: Final = (0, 1, 2, 5, 6)
"""Columns that count: user, nice, system, irq, softirq. The rest is idle, iowait, or stolen by the hypervisor. The time
of a machine's own guests is part of user and nice."""


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Processor time used so far. Two readings give a rate.

    Attributes:
        clock_ms: When it was read, in milliseconds on the machine's monotonic clock.
        busy_ms: Milliseconds that the machine's processors have worked, all of them added up.
        own_ms: Milliseconds that this process has used, without its children.
        processors: Number of processors that are online.
    """

    clock_ms: int
    busy_ms: int
    own_ms: int
    processors: int


def read_times(stat: Path = STAT) -> ProcessorTimes | None:
    """Read this machine's processor times, or None if the kernel does not show them."""
    try:
        first, *lines = stat.read_text(encoding="ascii").splitlines()
        columns = [int(text) for text in first.split()[1:]]
        ticks = sum(columns[place] for place in _BUSY)
    except (OSError, ValueError, IndexError):
        return None
    return ProcessorTimes(
        clock_ms=int(time.monotonic() * 1000),
        busy_ms=ticks * 1000 // os.sysconf("SC_CLK_TCK"),
        own_ms=time.process_time_ns() // 1_000_000,
        processors=sum(line.startswith("cpu") for line in lines),
    )
