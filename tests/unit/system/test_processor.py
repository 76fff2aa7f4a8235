"""Processor times, from texts as kernels write them and from this machine's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wgvsock.system.processor import read_times

STAT = """\
cpu  100 20 300 99999 4444 5 6 777 50 2
cpu0 60 10 150 50000 2222 5 0 700 50 2
cpu1 40 10 150 49999 2222 0 6 77 0 0
intr 12345 0 0
ctxt 99
btime 1800000000
"""


def test_idle_waiting_stolen_and_guests_time_do_not_count(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    times = read_times(stat)
    assert times is not None
    assert times.busy_ms == 431 * 1000 // os.sysconf("SC_CLK_TCK")
    assert times.processors == 2


@pytest.mark.parametrize("text", ["", "\n", "cpu\n", "cpu 1 2\n", "cpu a b c d e f g\n", "cpu ü\n"])
def test_a_kernel_that_shows_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text, encoding="utf-8")
    assert read_times(tmp_path / "stat") is None


def test_a_machine_without_proc(tmp_path: Path) -> None:
    assert read_times(tmp_path / "none") is None


def test_this_machine() -> None:
    first = read_times()
    sum(range(100_000))
    second = read_times()
    assert first is not None
    assert second is not None
    assert second.clock_ms >= first.clock_ms > 0
    assert second.busy_ms >= first.busy_ms > 0
    assert second.own_ms >= first.own_ms > 0
    assert second.processors == os.sysconf("SC_NPROCESSORS_ONLN")
