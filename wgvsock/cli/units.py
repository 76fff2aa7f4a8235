"""Formats durations, sizes and rates from untrusted values. An invalid value becomes ``?``."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_MOST: Final = 1e15
"""Valid numbers are smaller. The limit also keeps integers of thousands of digits from float()."""

_DURATIONS: Final = ((86_400.0, "d", 3600.0, "h"), (3600.0, "h", 60.0, "min"), (60.0, "min", 1.0, "s"))
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: object) -> float | None:
    """A finite number of a plausible size, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        return None
    return float(value)


def duration(value: object) -> str:
    """Seconds in at most two units: ``34 s``, ``12 min 3 s``, ``2 h 5 min``, ``3 d 4 h``."""
    seconds = number(value)
    if seconds is None or seconds < 0:
        return "?"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{whole} s"
    for size, unit, smaller, smaller_unit in _DURATIONS:
        if whole >= size:
            rest = int(whole % size // smaller)
            return f"{int(whole // size)} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return "?"


def milliseconds(value: object) -> str:
    """A short time: ``0.41 ms``, ``12 ms``, ``1.6 s``."""
    found = number(value)
    if found is None or found < 0:
        return "?"
    if found >= 1000:
        return f"{found / 1000:.1f} s"
    return f"{found:.2f} ms" if found < 10 else f"{found:.0f} ms"


def size(value: object, *, per: str = "") -> str:
    """Bytes: ``830 B``, ``1.2 MiB``. With `per`, such as ``/s``, a rate."""
    found = number(value)
    if found is None or found < 0:
        return "?"
    place = 0
    while found >= 1024 and place < len(_SIZES) - 1:
        found /= 1024
        place += 1
    return (f"{found:.0f} {_SIZES[place]}" if place == 0 or found >= 100 else f"{found:.1f} {_SIZES[place]}") + per


def count(value: object, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 time``, ``3 times``."""
    found = number(value)
    if found is None:
        return f"? {many or one + 's'}"
    return f"{found:.0f} {one if found == 1 else many or one + 's'}"


def since(moment: object, now: float) -> str:
    """How long before a Unix time (seconds) an RFC 3339 time was."""
    try:
        then = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
    except (ValueError, OverflowError):
        then = None
    return "?" if then is None else duration(max(0.0, now - then))
