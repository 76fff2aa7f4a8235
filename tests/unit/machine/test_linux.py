"""What both machines have: the operations that need no privilege. The behaviour suite tests the others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from wgvsock.machine.linux import LinuxMachine


def test_clocks_and_entropy() -> None:
    machine = LinuxMachine()
    assert machine.monotonic() <= time.monotonic() <= machine.monotonic() + 60
    assert abs(machine.wall_clock() - time.time_ns()) < 60 * 10**9
    assert len({machine.random(16) for _ in range(3)}) == 3


def test_wg_finds_the_interface_where_it_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wgvsock.machine.linux.socket_path", lambda name: tmp_path / f"{name}.sock")
    place = LinuxMachine().listen_for_wg("wg0")
    assert place is not None
    listener, path = place
    with listener:
        assert path.is_socket()
        assert LinuxMachine().listen_for_wg("wg0") is None  # another one has it, which breaks nothing
