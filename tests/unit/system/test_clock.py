"""Clocks. No test sets this machine's."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from wgvsock.system import clock
from wgvsock.system.errors import ClockError


def test_the_wall_clock_is_set_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda *arguments: calls.append(arguments))
    clock.set_wall_clock(123)
    assert calls == [(time.CLOCK_REALTIME, 123)]


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(time, "clock_settime_ns", refuse)
    with pytest.raises(ClockError) as caught:
        clock.set_wall_clock(123)
    assert caught.value.why == "Operation not permitted"


def test_a_device_is_read_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ptp0"
    path.touch()
    read: list[int] = []

    def gettime(clock_id: int) -> int:
        read.append(clock_id)
        return 456

    monkeypatch.setattr(time, "clock_gettime_ns", gettime)
    assert clock.read_hardware_clock(str(path)) == 456
    descriptor = ~(read[0] >> 3)
    assert clock.dynamic_clock(descriptor) == read[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_without_a_device(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="cannot read the hypervisor's clock"):
        clock.read_hardware_clock(str(tmp_path / "none"))
    with pytest.raises(ClockError):
        clock.read_hardware_clock("/dev/null")  # no clock


def test_the_number_of_a_clock() -> None:
    assert clock.dynamic_clock(3) == -29  # FD_TO_CLOCKID(3): (~3 << 3) | 3
