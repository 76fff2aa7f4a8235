"""The memory of a process that sleeps between packets.

A packet that arrives after a pause finds the processor's caches and its TLB cold; what it then costs is decided by how
many pages it touches.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAPS: Final = Path("/proc/self/maps")
_HUGE_PAGE: Final = 2 * 1024 * 1024
_MADV_COLLAPSE: Final = 25  # Linux 6.1, madvise(2): put together huge pages now
_HEAP: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$", re.MULTILINE)
"""A private, writable mapping of no file in proc_pid_maps(5): start and end."""


def settle() -> None:
    """Say that start-up is over: what it has made lives as long as the process.

    The garbage collector need not look at it again, and the kernel may spend some milliseconds on putting it on huge
    pages: some MiB more of resident memory, thousands of entries of the TLB fewer.
    """
    gc.freeze()
    try:
        import ctypes
    except ImportError:  # an enclave's image may lack libffi
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in huge_ranges(_MAPS.read_text()):
        madvise(start, length, _MADV_COLLAPSE)  # a kernel that cannot refuses, and nothing has changed


def huge_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """The parts of a process' heap that whole huge pages fit into, as (address, bytes).

    Args:
        maps: The text of /proc/PID/maps.
    """
    for found in _HEAP.finditer(maps):
        start, end = (int(found[group], 16) for group in (1, 2))
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if first < last:
            yield first, last - first
