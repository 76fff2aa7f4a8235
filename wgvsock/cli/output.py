"""What the commands print: data on standard output, errors on standard error in three lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, Final

from wgvsock.errors import WgvsockError

SCHEMA: Final = "wgvsock/v1"


class OutputError(WgvsockError):
    """What a command had to say could not be written."""

    code = "WGV-E056"


def put(text: str, *, end: str = "\n") -> None:
    """Print data, at once, so that a write that fails is seen here and not by the interpreter at its end.

    Raises:
        BrokenPipeError: The reader has gone.
        OutputError: The output is closed, or its disk is full.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(
            "cannot write to standard output",
            why=error.strerror or str(error),
            fix="nothing, or not all, has been written: give it a place and run the command again",
        ) from None


def _discard_output() -> None:
    """Lead standard output to nowhere: the interpreter would try to write what is left, and complain, at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def print_error(error: WgvsockError) -> None:
    """``error[WGV-E012]: what``, ``why: …``, ``fix: …``; each one line, whatever is in the texts."""
    why = error.why or "it was refused"
    fix = error.fix or f"look up {error.code} in docs/errors.md"
    lines = (f"error[{error.code}]: {error.what}", f"why: {why}", f"fix: {fix}")
    _tell("\n".join(" ".join(line.split()) for line in lines))


def note(text: str) -> None:
    """``note: …`` for whoever reads the data."""
    _tell(f"note: {text}")


def _tell(text: str) -> None:
    """To standard error; where that cannot be written to, the exit status has to say it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, with the schema first."""
    put(json.dumps({"schema": SCHEMA, **value}))
