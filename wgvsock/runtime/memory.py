"""Tunes the memory of a process that sleeps between packets.

A packet that arrives after a pause finds the processor's caches and TLB cold. Its cost then depends on how many pages
it touches.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FULL_COLLECTION_AFTER: Final = 200
"""Collections of the middle generation between two full collections, instead of Python's 10. With 10,000 peers, a full
collection stops the process for 0.1 to 0.3 s, and configuring that many peers triggered a dozen. Most garbage is freed
without the collector. The rest waits, for at most 1.4 million allocations."""

OWN_MAPPING_FROM: Final = 128 * 1024
"""Bytes from which a buffer gets a separate mapping. This is glibc's default, which it raises when such a buffer is
freed. The buffers of the next streams would then come from the heap and leave holes there: 5 KiB of resident memory for
each new attestation, without end."""

_M_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_MAPS: Final = Path("/proc/self/maps")
_HUGE_PAGE: Final = 2 * 1024 * 1024
_MADV_COLLAPSE: Final = 25  # Linux 6.1, madvise(2): build huge pages now
_HEAP: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$", re.MULTILINE)
"""A private, writable mapping without a file in proc_pid_maps(5): start and end."""


def settle() -> None:
    """Mark the end of start-up: the objects made so far live as long as the process.

    The garbage collector no longer examines them, and examines other objects less often. The kernel may spend a few
    milliseconds on moving them to huge pages. That costs a few MiB of resident memory and saves thousands of TLB
    entries. From now on a stream's buffers go back to the kernel with the stream.
    """
    gc.enable()  # `wgvsock.cli.start` has kept it off
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_COLLECTION_AFTER)
    try:
        import ctypes
    except ImportError:  # an enclave's image may lack libffi
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in every C library
        libc.mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_FROM)
    madvise = libc.madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in huge_ranges(_MAPS.read_text()):
        madvise(start, length, _MADV_COLLAPSE)  # a kernel without it refuses, which changes nothing


def sweep() -> None:
    """Run the garbage collector. Call it after creating much garbage in reference cycles.

    Subprocesses and netlink messages leave cycles behind: 60 KB each time that rules are applied. After `settle` they
    would stay for hours. Objects from start-up are not examined, so with a few peers this takes at most a millisecond.
    """
    gc.collect()


def huge_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """The parts of a process's heap that consist of whole huge pages.

    Args:
        maps: The text of /proc/PID/maps.

    Yields:
        Address and length in bytes.
    """
    for found in _HEAP.finditer(maps):
        start, end = (int(found[group], 16) for group in (1, 2))
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if first < last:
            yield first, last - first
