from __future__ import annotations

import gc
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
