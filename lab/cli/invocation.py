"""How to call this laboratory from its user's shell: hints name the interpreter that has the dependencies."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

_WRITTEN: Final = "python -m lab"
"""The command as every hint writes it."""


def as_typed(text: str) -> str:
    """Return a hint whose commands work in the reader's shell, where ``python`` may differ or be missing."""
    return text.replace(_WRITTEN, f"{interpreter()} -m lab")


def interpreter() -> str:
    """Return ``python`` if that is this interpreter, otherwise its path, relative below the current directory."""
    ours = Path(sys.executable)
    found = shutil.which("python")
    if found is not None and Path(found).absolute() == ours.absolute():
        return "python"
    try:
        return os.fspath(ours.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(ours)
