"""The lines of a text's tables and keys. test_schema.py tests the messages that name them."""

from __future__ import annotations

import pytest

from wgvsock.settings.lines import line_numbers, line_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("a = 1\n\nb = 2", {("a",): 1, ("b",): 3}),
        ("# a = 1\n[t] # b\na = 1", {("t",): 2, ("t", "a"): 3}),
        ("a.b = 1\na.c = 2", {("a",): 1, ("a", "b"): 1, ("a", "c"): 2}),
        ("\"a.b\" = 1\n'c d' = 2", {("a.b",): 1, ("c d",): 2}),
        ("[[t]]\na = 1\n[[t]]\na = 1", {("t",): 1, ("t", 0): 1, ("t", 0, "a"): 2, ("t", 1): 3, ("t", 1, "a"): 4}),
        ("[[t]]\n[t.u]\na = 1", {("t",): 1, ("t", 0): 1, ("t", 0, "u"): 2, ("t", 0, "u", "a"): 3}),
        ("a = [\n  1, # ]\n  2,\n]\nb = 1", {("a",): 1, ("b",): 5}),
        ("a = [{b = 1},\n\"c = [\", 'd = {']\ne = 1", {("a",): 1, ("e",): 3}),
        ('a = """\nb = 1\n[c]\n"""\nd = 1', {("a",): 1, ("d",): 5}),
        ("a = '''x''' # y\nb = ['''\n''', 'c']\nd = 1", {("a",): 1, ("b",): 2, ("d",): 4}),
    ],
)
def test_line_numbers(text: str, lines: dict[tuple[str | int, ...], int]) -> None:
    assert line_numbers(text) == lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("t", 1, "a"), 4),
        (("t", 1, "b"), 3),
        (("t", 1, "array", 7), 5),
        (("t", 9), 1),
        (("u", "a"), None),
        ((), None),
    ],
)
def test_a_value_stands_where_the_nearest_part_of_its_path_is_written(
    path: tuple[str | int, ...], line: int | None
) -> None:
    assert line_of(path, line_numbers("[[t]]\na = 1\n[[t]]\na = 1\narray = [1,\n2]")) == line
