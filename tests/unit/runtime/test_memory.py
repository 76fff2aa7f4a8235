from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import pytest

from wgvsock.runtime.memory import FULL_COLLECTION_AFTER, huge_ranges, settle, sweep

MAPS = """\
55d000000000-55d000200000 rw-p 00000000 00:00 0                          [heap]
55d000300000-55d000900000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000400000 r-xp 00000000 fe:00 4711                       /usr/bin/python3.11
7f0000400000-7f0000800000 rw-p 00100000 fe:00 4711                       /usr/bin/python3.11
7f0001000000-7f0001400000 rw-s 00000000 00:00 0
7f0002100000-7f00022ff000 rw-p 00000000 00:00 0
7f0003000000-7f0003400000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_whole_huge_pages_of_the_heap_are_named() -> None:
    assert list(huge_ranges(MAPS)) == [
        (0x55D000000000, 0x200000),
        (0x55D000400000, 0x400000),
        (0x7F0003000000, 0x400000),
    ]


def test_settling_freezes_what_is_there_and_harms_nothing() -> None:
    kept = [bytearray(b"x" * 4096) for _ in range(2000)]
    before, thresholds = gc.get_freeze_count(), gc.get_threshold()
    gc.disable()  # as it is until a service runs
    try:
        settle()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
        assert gc.get_threshold() == (*thresholds[:2], FULL_COLLECTION_AFTER), "a full collection stops the traffic"
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert all(part == b"x" * 4096 for part in kept)


def test_settling_does_without_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    settle()
    gc.unfreeze()


def test_what_refers_to_itself_and_has_grown_old_is_freed() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.self = self

    gc.disable()
    try:
        cycle = Cycle()
        gc.collect(1)  # it is of the oldest generation now
        gone = weakref.ref(cycle)
        del cycle
        gc.collect(1)
        assert gone() is not None
        sweep()
        assert gone() is None
    finally:
        gc.enable()


LARGE_BUFFERS = """
import ctypes
from wgvsock.runtime.memory import OWN_MAPPING_FROM, settle

class Mallinfo2(ctypes.Structure):  # mallinfo(3)
    names = ("arena", "ordblks", "smblks", "hblks")
    _fields_ = [*((name, ctypes.c_size_t) for name in names), ("rest", ctypes.c_size_t * 6)]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
settle()
larger = bytearray(32 * OWN_MAPPING_FROM)
del larger
before = mallinfo2().hblks
buffers = [bytearray(2 * OWN_MAPPING_FROM) for _ in range(8)]
print(mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="missing: mallinfo2(3) of glibc 2.33")
def test_a_large_buffer_has_its_own_mapping_even_after_a_larger_one_was_freed() -> None:
    said = subprocess.run([sys.executable, "-c", LARGE_BUFFERS], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "8"
