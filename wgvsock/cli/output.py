"""What the commands print: data on standard output, errors on standard error in three lines."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from wgvsock.errors import WgvsockError

SCHEMA: Final = "wgvsock/v1"


def print_error(error: WgvsockError) -> None:
    """``error[WGV-E012]: what``, ``why: …``, ``fix: …``; each one line, whatever is in the texts."""
    why = error.why or "it was refused"
    fix = error.fix or f"look up {error.code} in docs/errors.md"
    lines = (f"error[{error.code}]: {error.what}", f"why: {why}", f"fix: {fix}")
    print("\n".join(" ".join(line.split()) for line in lines), file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, with the schema first."""
    print(json.dumps({"schema": SCHEMA, **value}))
