"""Data on standard output, errors on standard error in three lines."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.cli.output import print_error, print_json
from wgvsock.errors import TransportError, WgvsockError


def test_an_error_is_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(TransportError("cannot connect", why="Connection refused", fix="start it"))
    captured = capsys.readouterr()
    assert captured.err == "error[WGV-E010]: cannot connect\nwhy: Connection refused\nfix: start it\n"
    assert not captured.out


def test_an_error_without_reason_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(WgvsockError("it failed"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error[WGV-E000]: it failed", "why: it was refused", "fix: look up WGV-E000 in docs/errors.md"]


@given(st.text(), st.text(), st.text())
def test_three_lines_whatever_is_in_them(what: str, why: str, fix: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as written:
        print_error(WgvsockError(what, why=why, fix=fix))
    lines = written.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error[WGV-E000]", "why", "fix"]


def test_json_is_one_line_with_the_schema_first(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "two\nlines", "number": 1})
    out = capsys.readouterr().out
    assert out.startswith('{"schema": "wgvsock/v1", ')
    assert out.count("\n") == 1
    assert json.loads(out) == {"schema": "wgvsock/v1", "text": "two\nlines", "number": 1}
