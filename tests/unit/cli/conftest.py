"""The command as a whole: `main` with arguments, and what it prints."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from wgvsock.cli import main
from wgvsock.runtime.process import HELD


@dataclass(frozen=True, slots=True)
class Failure:
    """The three lines of an error."""

    code: str
    what: str
    why: str
    fix: str


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., Failure]:
    """Run a command that ends in an error: nothing on standard output, three lines at the end of standard error."""

    def run(*argv: str, status: int, logs: bool = False) -> Failure:
        capsys.readouterr()
        assert main(argv) == status
        captured = capsys.readouterr()
        assert not captured.out
        lines = captured.err.splitlines()
        assert len(lines) == 3 or logs
        found = re.fullmatch(r"error\[(WGV-E\d{3})\]: (.+)\nwhy: (.+)\nfix: (.+)", "\n".join(lines[-3:]))
        assert found is not None, captured.err
        return Failure(*found.groups())

    return run


@pytest.fixture
def prints(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that succeeds: its standard output, and nothing on standard error."""

    def run(*argv: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(argv) == status
        captured = capsys.readouterr()
        assert not captured.err
        return captured.out

    return run


@pytest.fixture
def prints_json(prints: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Run a command with ``--json``: the one object that it prints, on one line."""

    def run(*argv: str, status: int = 0) -> dict[str, Any]:
        out = prints(*argv, "--json", status=status)
        assert out.count("\n") == 1
        answer = json.loads(out)
        assert answer["schema"] == "wgvsock/v1"
        assert isinstance(answer, dict)
        return answer

    return run


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Leave no signal pending afterwards: a service holds them to the end of its process."""
    yield
    while signal.sigtimedwait(HELD, 0):
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


@pytest.fixture(autouse=True)
def core_dumps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that a command forbids them. This process, which tests share, stays unchanged."""
    forbidden: list[str] = []
    for module in ("wgvsock.runtime.process", "wgvsock.cli.keys"):
        monkeypatch.setattr(f"{module}.forbid_core_dumps", lambda: forbidden.append("forbidden"))
    return forbidden


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> ControlSockets:
    """Control sockets. Nothing listens anywhere yet."""
    return ControlSockets(monkeypatch)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """An empty PATH, and a function that puts a shell script on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


@pytest.fixture
def loggers() -> Iterator[None]:
    """Restore logging afterwards: services set it up for the whole process."""
    root, ours = logging.getLogger(), logging.getLogger("wgvsock")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
