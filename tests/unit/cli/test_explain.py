"""What operators read when they ask for a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def test_a_code(prints: Callable[..., str]) -> None:
    lines = prints("explain", "e31").splitlines()
    assert lines[0] == "WGV-E031 (error)"
    assert [line[:6] for line in lines[1:]] == ["what: ", "fix:  ", "exit: ", "more: "]
    assert lines[-1] == "more: docs/errors.md"


def test_long_texts_are_wrapped(prints: Callable[..., str]) -> None:
    lines = prints("explain", "WGV-E044").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("      ") for line in lines)


def test_a_check_and_a_drop_reason(prints: Callable[..., str]) -> None:
    check = prints("explain", "pcr.debug").splitlines()
    assert check[0] == "pcr.debug (check)"
    assert check[2] == "fix:  start the enclave without --debug-mode"
    dropped = prints("explain", "no_route")
    assert dropped.startswith("no_route (drop reason)\n")
    assert "exit:" not in dropped


def test_all(prints: Callable[..., str]) -> None:
    lines = prints("explain").splitlines()
    assert len(lines) > 130
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("WGV-E000             a failure")


def test_json(prints_json: Callable[..., dict[str, Any]]) -> None:
    answer = prints_json("explain", "71")
    assert (answer["name"], answer["kind"], answer["exit_status"]) == ("WGV-E071", "error", 7)
    assert answer in [{"schema": answer["schema"], **entry} for entry in prints_json("explain")["entries"]]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("pcr.sett", "did you mean pcr.set?"),
        ("WGV-E999", "did you mean WGV-E099?"),
        ("bogus", "`wgvsock explain` lists all names"),
    ],
)
def test_an_unknown_name(fails: Callable[..., Any], name: str, fix: str) -> None:
    failure = fails("explain", name, status=2)
    assert failure.code == "WGV-E001"
    assert failure.fix == fix
