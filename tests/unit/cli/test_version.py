"""Which wgvsock this is, for people and for programs."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest

from wgvsock import __version__
from wgvsock.release import Release

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_built_one(monkeypatch: pytest.MonkeyPatch, prints: Callable[..., str]) -> None:
    monkeypatch.setattr("wgvsock.cli.version.release", lambda: Release("7.8", COMMIT, "42"))
    assert prints("version") == f"wgvsock 7.8, commit {COMMIT}, build 42, pure Python\n"


def test_a_checkout(prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgvsock.cli.version.release", lambda: Release(__version__))
    assert prints("version") == f"wgvsock {__version__}, commit unknown, build unknown, pure Python\n"


def test_a_compiled_one_says_so(monkeypatch: pytest.MonkeyPatch, prints: Callable[..., str]) -> None:
    monkeypatch.setattr("wgvsock.cli.version.release", lambda: Release("7.8", COMMIT, "42", compiled=True))
    assert prints("version") == f"wgvsock 7.8, commit {COMMIT}, build 42, compiled\n"


def test_as_json(monkeypatch: pytest.MonkeyPatch, prints_json: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setattr("wgvsock.cli.version.release", lambda: Release("7.8", COMMIT, "42"))
    assert prints_json("version") == {
        "schema": "wgvsock/v1",
        "version": "7.8",
        "commit": COMMIT,
        "build": "42",
        "compiled": False,
        "python": platform.python_version(),
    }
