"""Data on standard output, errors on standard error in three lines."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.cli import main
from wgvsock.cli.output import note, print_error, print_json, put, put_lines, put_text
from wgvsock.errors import TransportError, WgvsockError


def test_an_error_is_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(TransportError("cannot connect", why="Connection refused", fix="start it"))
    captured = capsys.readouterr()
    assert captured.err == "error[WGV-E010]: cannot connect\nwhy: Connection refused\nfix: start it\n"
    assert not captured.out


def test_an_error_without_reason_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(WgvsockError("it failed"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error[WGV-E000]: it failed", "why: it was refused", "fix: see `wgvsock explain WGV-E000`"]


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


# What others chose.

ANY_TEXT = st.text(st.characters())
"""Lone surrogates as well."""

HOSTILE = "a\x1b[2J\x9b31m\u202etxt.exe\u200b\r\nerror[WGV-E000]: forged"


def printed(act: Callable[[], object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        act()
    return out.getvalue()


@given(ANY_TEXT, st.sampled_from([put, put_text, note, lambda text: put_lines([text, text])]))
def test_what_is_printed_holds_no_control_character_but_line_feeds(text: str, act: Callable[[str], None]) -> None:
    written = printed(lambda: act(text))
    assert not [
        character
        for character in written
        if character != "\n" and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    ]
    written.encode()


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_nor_do_errors(what: str, why: str, fix: str) -> None:
    written = printed(lambda: print_error(WgvsockError(what, why=why, fix=fix)))
    assert written.count("\n") == 3
    assert written.replace("\n", "").isprintable()


@given(ANY_TEXT)
def test_a_line_of_data_is_one_line(text: str) -> None:
    assert printed(lambda: put(text)).count("\n") == 1
    assert printed(lambda: put_lines([text] * 3)).count("\n") == 3


@given(ANY_TEXT)
def test_json_stays_exact(text: str) -> None:
    written = printed(lambda: print_json({"text": text}))
    assert written.isascii()
    assert json.loads(written)["text"] == text


def test_a_long_error_is_cut() -> None:
    written = printed(lambda: print_error(WgvsockError("x" * 1_000_000, why="y" * 1_000_000)))
    assert len(written) < 10_000
    assert "more characters)" in written


def test_an_encoding_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="iso-8859-1"))
    put("Zürich, 東京")
    assert raw.getvalue() == b"Z\xfcrich, \\u6771\\u4eac\n"


def test_arguments_are_shown_safely(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["status", HOSTILE])
    written = capsys.readouterr().err
    assert "unrecognized arguments: a\\u001b[2J\\u009b31m\\u202etxt.exe" in written
    assert written.replace("\n", "").isprintable()


def test_a_configuration_s_keys_and_name_are_shown_safely(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path_factory.mktemp("x") / "\x1b]0;title\x07\u202e.toml"
    path.write_text(f"{json.dumps(HOSTILE)} = 1\n")
    assert main(["config", "check", "relay", str(path)]) == 2
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 3
    assert written.replace("\n", "").isprintable()
    assert "\\u001b]0;title\\u0007\\u202e.toml, line 1" in written
