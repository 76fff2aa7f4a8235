"""Foreign text on a terminal: nothing controls it, nothing is hidden, and readable text is unchanged."""

from __future__ import annotations

import json
import tomllib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.text import meant, nearest, one_line, printable, printable_lines, shortened

ANY_TEXT = st.text(st.characters())
"""Also lone surrogates: they represent bytes of a file name that are not UTF-8."""

CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def has_controls(text: str) -> bool:
    return any(unicodedata.category(character) in CONTROLS for character in text)


@given(ANY_TEXT)
def test_no_control_character_is_left(text: str) -> None:
    assert not has_controls(printable(text))
    assert not has_controls(one_line(text))
    assert not has_controls(printable_lines(text).replace("\n", ""))
    printable(text).encode()


@given(ANY_TEXT)
def test_lines_stay_lines(text: str) -> None:
    assert printable_lines(text).count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\")))
def test_nothing_is_lost(text: str) -> None:
    assert printable(text).encode("ascii", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("wg0: ok", "wg0: ok"),
        ("Zürich 東京 🙂", "Zürich 東京 🙂"),
        ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("line\u2028separator\x85", r"line\u2028separator\u0085"),
        ("no\u00a0break", r"no\u00a0break"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("\udcff.sock", r"\udcff.sock"),
        ("\x7f", r"\u007f"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\')))
def test_a_toml_string_still_reads_back(text: str) -> None:
    written = printable(json.dumps({"k": text}, ensure_ascii=False))
    value = tomllib.loads("k = " + written.removeprefix('{"k": ').removesuffix("}"))["k"]
    assert value == text


def test_layout_becomes_spaces() -> None:
    assert one_line("  an\n error\t of  nft:\r\n  ^^^  ") == r"an error of nft:\r ^^^"


def test_a_long_text_says_what_is_missing() -> None:
    assert one_line("x" * 10, 10) == "x" * 10
    assert one_line("x" * 30, 10) == "x" * 10 + "… (20 more characters)"
    assert shortened("\n\n\n", 2) == "\n\n… (1 more characters)"


@pytest.mark.parametrize(
    ("name", "found"),
    [("sttatus", "status"), ("--jsn", "--json"), ("walet", "wallet"), ("quite another", None), ("", None)],
)
def test_the_name_that_was_meant(name: str, found: str | None) -> None:
    assert nearest(name, ["status", "--json", "wallet"]) == found
    assert meant(name, iter(["status", "--json", "wallet"])) == (
        f"did you mean {found}?" if found else "name one of them"
    )


def test_a_name_of_a_megabyte_costs_no_time() -> None:
    assert nearest("a" * (1 << 20), ["a" * 99]) == "a" * 99
