"""A hint names an interpreter that the reader's shell finds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.cli.invocation import as_typed, interpreter


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ".venv/bin/python"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    return path


def test_inside_the_environment(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(ours.parent))
    assert as_typed("see python -m lab status") == "see python -m lab status"


def test_outside_of_it(ours: Path) -> None:
    text = "python -m lab status, python -m lab.image.lock"
    assert as_typed(text) == ".venv/bin/python -m lab status, .venv/bin/python -m lab.image.lock"


def test_with_another_python_on_the_path(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other/python"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert interpreter() == ".venv/bin/python"


def test_from_another_folder(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert interpreter() == str(ours.relative_to("/"))
    monkeypatch.chdir(ours.parent)
    assert interpreter() == "python"
