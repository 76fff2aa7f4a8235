"""Reads untrusted answers. A value that is missing or has an unexpected type appears as ``?``.

The service may have another version, or a different program may listen at the control socket.
"""

from __future__ import annotations

from typing import Any, Final

from wgvsock.text import shortened

_MAX_NUMBER: Final = 1e15
"""A number from here up is wrong, whatever it measures."""


def at(value: Any, *path: str) -> Any:
    """The value at a path in nested objects, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text(value: Any, *path: str, most: int) -> str:
    """The text or number at a path, cut to `most` characters, or ``?``."""
    found = at(value, *path)
    return shortened(str(found), most) if isinstance(found, str | int | float) else "?"


def rounded(number: object) -> str:
    """A number without its fraction, or ``?``."""
    # Excludes NaN, infinity, and integers of thousands of digits, which no float can hold.
    return f"{number:.0f}" if isinstance(number, int | float) and abs(number) < _MAX_NUMBER else "?"


def items(value: Any, *path: str) -> list[Any]:
    """The list at a path, or an empty one."""
    found = at(value, *path)
    return found if isinstance(found, list) else []
