"""Finds the line of each table and key in a TOML text. Error messages need it, and tomllib does not provide it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final

from wgvsock.settings.errors import KeyPath

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"^\s*((?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+?)\s*=")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRING: Final = re.compile(r"\"\"\"|'''|\"(?:\\.|[^\"\\])*\"|'[^']*'|#.*")


def line_numbers(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of each table header and key of a valid TOML text."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    open_brackets, open_string = 0, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not open_brackets and not open_string:
            if header := _HEADER.match(line):
                table = _resolve(_split_key(header[2]), counts)
                if header[1] == "[[":
                    position = counts[table] = counts.get(table, -1) + 1
                    table = (*table, position)
                _note(lines, table, number)
                continue
            if key := _KEY.match(line):
                _note(lines, (*table, *_split_key(key[1])), number)
        open_brackets, open_string = _continuation(line, open_brackets, open_string)
    return lines


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """The line of a value, or of the innermost part of its path that the text contains.

    Args:
        path: The place of the value.
        lines: From `line_numbers`.

    Returns:
        The line, counted from 1, or None if the text contains no part of the path.
    """
    # The values of an array or an inline table are at or after the line of their key.
    return next((line for length in range(len(path), 0, -1) if (line := lines.get(path[:length]))), None)


def _note(lines: dict[KeyPath, int], path: KeyPath, number: int) -> None:
    """Note a path, and the tables that it mentions for the first time."""
    for length in range(1, len(path) + 1):
        lines.setdefault(path[:length], number)


def _split_key(text: str) -> KeyPath:
    if _BARE.fullmatch(text):
        return (text,)
    parts: list[str] = []
    value: object = tomllib.loads(f"{text} = 0")
    while isinstance(value, dict):
        (part,) = value
        parts.append(part)
        value = value[part]
    return tuple(parts)


def _resolve(names: KeyPath, counts: Mapping[KeyPath, int]) -> KeyPath:
    """Insert the current position after each name that is an array of tables: ``[[a]]`` then ``[a.b]``."""
    path: KeyPath = ()
    for index, name in enumerate(names):
        path = (*path, name)
        if path in counts and index < len(names) - 1:
            path = (*path, counts[path])
    return path


def _continuation(line: str, brackets: int, string: str) -> tuple[int, str]:
    """Whether the value continues on the next line: depth of open brackets, and delimiter of an open long string."""
    rest = line
    while rest:
        if string:
            _, found, rest = rest.partition(string)
            string = "" if found else string
            if string:
                break
            continue
        token = _STRING.search(rest)
        head = rest[: token.start()] if token else rest
        brackets += head.count("[") + head.count("{") - head.count("]") - head.count("}")
        if token is None:
            break
        rest = rest[token.end() :]
        if token[0] in {'"""', "'''"}:
            string = token[0]
    return brackets, string
