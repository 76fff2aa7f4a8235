"""Lines for a terminal: in colour, wrapped to its width, and redrawn in place.

Only a terminal gets colour, unless ``NO_COLOR`` (https://no-color.org) or ``TERM=dumb`` is set. Colour adds no
information to the words. A pipe gets the same lines without colour, at 80 columns.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from wgvsock.cli.output import put_raw
from wgvsock.text import printable

Tone = Literal["", "good", "warn", "bad", "faint"]

WIDTH: Final = 80
"""Columns if the output is not a terminal, and the minimum for a terminal."""

LABEL: Final = 13
"""Columns of a label with the space after it, without the two in front of it."""

_SGR: Final[dict[Tone, str]] = {"good": "32", "warn": "33", "bad": "1;31", "faint": "2"}
_HOME_AND_CLEAR: Final = "\x1b[H\x1b[J"


class Line(NamedTuple):
    """One line.

    Attributes:
        text: Without a line feed.
        tone: Its colour.
    """

    text: str
    tone: Tone = ""


def is_terminal() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def has_colour() -> bool:
    """Whether to use colour on standard output."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def width() -> int:
    """Columns of standard output."""
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if is_terminal() else WIDTH


def labelled(label: str, text: str, columns: int, tone: Tone = "") -> list[Line]:
    """``  label        text``, with the text wrapped to a hanging indent."""
    indent = " " * (LABEL + 2)
    lines = textwrap.wrap(
        printable(text),
        max(20, columns),
        initial_indent=f"  {label:<{LABEL}}",
        subsequent_indent=indent,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return [Line(line, tone) for line in lines or [f"  {label}"]]


def table(rows: Iterable[Iterable[str]], right: frozenset[int] = frozenset()) -> list[Line]:
    """Align cells in columns.

    Args:
        rows: The cells. The first row is the heading.
        right: Indexes of the columns to align to the right.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for position, row in enumerate(cells):
        padded = [
            cell.rjust(wide) if column in right else cell.ljust(wide)
            for column, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(Line("  ".join(padded).rstrip(), "" if position else "faint"))
    return lines


def show(lines: Iterable[Line], *, redraw: bool = False) -> None:
    """Print lines. With `redraw`, they replace what the terminal showed before.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    colour = has_colour()
    text = "".join(f"{_painted(line) if colour else printable(line.text)}\n" for line in lines)
    put_raw((_HOME_AND_CLEAR if redraw and is_terminal() else "") + text)


def _painted(line: Line) -> str:
    text = printable(line.text)
    return f"\x1b[{_SGR[line.tone]}m{text}\x1b[0m" if line.tone in _SGR else text
