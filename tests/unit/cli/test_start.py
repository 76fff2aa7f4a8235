"""The first lines: a service holds signals before it imports anything slow. Other commands do not."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest

from wgvsock.cli import device_main, main
from wgvsock.runtime.process import HELD

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
"""The environment of a child that imports only what the command imports, nothing for coverage."""


def blocked() -> set[signal.Signals]:
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[set[signal.Signals]]:
    """The signals that are blocked while a command runs."""
    seen: list[set[signal.Signals]] = []

    def note(*_: object) -> int:
        seen.append(blocked())
        return 7

    monkeypatch.setattr("wgvsock.cli.entry.run", note)
    monkeypatch.setattr("wgvsock.cli.device.main", note)
    return seen


@pytest.mark.parametrize("argv", [("relay", "run", "-c", "f"), ("enclave", "run", "--", "app"), ("device", "wg0")])
def test_signals_wait_for_a_service(
    argv: tuple[str, ...], masks: list[set[signal.Signals]], core_dumps: list[str]
) -> None:
    assert main(argv) == 7
    assert masks == [HELD]
    assert core_dumps == ["forbidden"]
    assert blocked() == HELD  # to the end of the process


def test_the_garbage_collector_waits_for_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def note(_: object) -> int:
        seen.append(gc.isenabled())
        return 0

    monkeypatch.setattr("wgvsock.cli.entry.run", note)
    assert (main(("relay", "run")), main(("status",))) == (0, 0)
    assert seen == [False, True]
    assert gc.isenabled()


def test_signals_wait_for_a_device(masks: list[set[signal.Signals]], core_dumps: list[str]) -> None:
    assert device_main(["wg0"]) == 7
    assert masks == [HELD]
    assert core_dumps == ["forbidden"]
    assert blocked() == HELD  # to the end of the process


@pytest.mark.parametrize("argv", [("relay", "reload"), ("status",), ("keys", "gen"), (), ("--version",)])
def test_other_commands_end_as_ever(argv: tuple[str, ...], masks: list[set[signal.Signals]]) -> None:
    assert main(argv) == 7
    assert masks == [set()]


@pytest.mark.parametrize("number", sorted(HELD))
def test_a_signal_does_not_change_how_a_failed_start_ends(number: signal.Signals) -> None:
    arguments = ["relay", "run", "-c", "/no/such/file"]
    script = (
        "import os, signal, sys, wgvsock.cli, wgvsock.runtime.process as process\n"
        "forbid = process.forbid_core_dumps\n"
        f"process.forbid_core_dumps = lambda: (forbid(), os.kill(os.getpid(), {number:d}))\n"
        f"sys.exit(wgvsock.cli.main({arguments}))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended
    assert "error[WGV-E004]" in ended.stderr


@pytest.mark.parametrize("code", ["import wgvsock.cli", "from wgvsock.cli.start import device_main"])
def test_nothing_that_takes_time_comes_first(code: str) -> None:
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=PLAIN)
    ours = {"wgvsock", "wgvsock.cli", "wgvsock.cli.start", "wgvsock.runtime", "wgvsock.runtime.process"}
    standard = {"__future__", "signal", "enum", "typing", "collections.abc"}
    foreign = {name.partition(".")[0] for name in set(ended.stdout.split()) - ours}
    assert not {"argparse", "json", "asyncio", "importlib.metadata", "logging", "cryptography"} & foreign
    assert ours <= set(ended.stdout.split())
    assert len(set(ended.stdout.split()) - ours - standard) < 25
