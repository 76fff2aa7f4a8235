"""Everything in an answer is shown, if necessary as a question mark."""

from __future__ import annotations

import pytest

from wgvsock.cli.foreign import at, items, rounded, text

ANSWER = {"peer": {"key": "ab", "port": 7, "tags": ["x"], "age": None}}


def test_what_stands_in_tables_within_tables() -> None:
    assert at(ANSWER, "peer", "port") == 7
    assert at(ANSWER, "peer", "key", "deeper") is None
    assert at(ANSWER, "nobody", "port") is None
    assert at(7) == 7


@pytest.mark.parametrize(("path", "shown"), [("key", "ab"), ("port", "7"), ("tags", "?"), ("age", "?"), ("no", "?")])
def test_texts_and_numbers(path: str, shown: str) -> None:
    assert text(ANSWER, "peer", path, most=10) == shown


def test_a_text_is_of_limited_length() -> None:
    assert text("x" * 1000, most=50) == "x" * 50 + "… (950 more characters)"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1.6, "2"), (7, "7"), (float("nan"), "?"), (1e15, "?"), (10**400, "?"), ("7", "?"), (None, "?")],
)
def test_numbers(number: object, shown: str) -> None:
    assert rounded(number) == shown


def test_lists() -> None:
    assert items(ANSWER, "peer", "tags") == ["x"]
    assert items(ANSWER, "peer", "key") == items(None) == []
