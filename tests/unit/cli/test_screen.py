"""Colour by the conventions, lines that fit, and no foreign text that controls the terminal."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from wgvsock.cli import screen
from wgvsock.cli.screen import Line, labelled, show, table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("wgvsock.cli.screen.sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


LINES = [Line("well", "good"), Line("so \x1b[2Jso", "bad"), Line("plain")]


def test_a_pipe_gets_no_colour_and_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show(LINES, redraw=True)
    assert capsys.readouterr().out == "well\nso \\u001b[2Jso\nplain\n"
    assert screen.width() == 80


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_colour_and_what_others_wrote_stays_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    show(LINES)
    assert capsys.readouterr().out == "\x1b[32mwell\x1b[0m\n\x1b[1;31mso \\u001b[2Jso\x1b[0m\nplain\n"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("name", "value", "redraws"), [("NO_COLOR", "1", True), ("TERM", "dumb", False)])
def test_who_wants_no_colour_gets_none(
    name: str, value: str, redraws: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    show(LINES[:1], redraw=True)
    assert capsys.readouterr().out == ("\x1b[H\x1b[J" if redraws else "") + "well\n"


@pytest.mark.usefixtures("terminal")
def test_the_terminal_s_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, expected in ((120, 120), (40, 80)):
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr("wgvsock.cli.screen.shutil.get_terminal_size", lambda _, size=size: size)
        assert screen.width() == expected


def test_a_label_with_more_than_one_line() -> None:
    lines = labelled("path", "word " * 30, 40)
    assert lines[0].text.startswith("  path         word")
    assert lines[1].text.startswith("               word")
    assert all(len(line.text) <= 40 for line in lines)
    assert labelled("empty", "", 80) == [Line("  empty")]


def test_a_table() -> None:
    rows: Any = [["name", "rate"], ["a", "10"], ["longer", "1"]]
    assert [line.text for line in table(rows, right=frozenset({1}))] == ["name    rate", "a         10", "longer     1"]
