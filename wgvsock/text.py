r"""Makes foreign text safe to show: it must not control a terminal, forge a line or hide a part of itself.

Configuration keys, file and interface names, answers of tools and services, and whatever a peer sent reach a terminal
or a log sooner or later. They pass through here when they are output, not when they are read: so none is missed, and
the program works with the original text.

A character is shown when Unicode calls it printable (`str.isprintable`). Control characters of both sets (C0, C1),
line and paragraph separators, bidirectional and zero-width controls, odd spaces, private and unassigned characters and
lone surrogates are written as TOML writes them: ``\n``, ``\u001b``, ``\u202e``, ``\U000e0001``. So a setting that is
printed as TOML still reads back to the same value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_SIMILAR: Final = 0.6
"""The difflib ratio from which one name counts as a misspelling of another."""

_LONGEST_NAME: Final = 100
"""Characters of a name that are compared. The effort grows with the square of their number."""


def printable(text: str) -> str:
    """The text on one line, with every character that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def printable_lines(text: str) -> str:
    """As `printable`, for a text of several lines: line feeds are kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """A message on one line: layout (line feeds, tabs, runs of spaces) becomes single spaces, the rest is `printable`.

    Args:
        text: Any text.
        limit: Characters to keep. A text that is cut says how many are missing.
    """
    joined = " ".join(word for word in text.replace("\n", " ").replace("\t", " ").split(" ") if word)
    return printable(joined if limit is None else shortened(joined, limit))


def shortened(text: str, limit: int) -> str:
    """The first `limit` characters of a text, and how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that the author of this one most likely meant, or None if no name is near."""
    import difflib  # takes 5 ms, which only a mistyped name has to pay for

    return next(iter(difflib.get_close_matches(name[:_LONGEST_NAME], list(known), n=1, cutoff=_SIMILAR)), None)


def meant(name: str, known: Iterable[str], otherwise: str = "name one of them") -> str:
    """The remedy for an unknown name: the name that was probably meant, or `otherwise` if none is near."""
    found = nearest(name, known)
    return otherwise if found is None else f"did you mean {found}?"


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
