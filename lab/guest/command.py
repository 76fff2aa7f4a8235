"""How a program of this package is started: without site-packages, the user's variables and the working directory."""

from __future__ import annotations

import sys
from pathlib import Path


def alone(program: str) -> list[str]:
    """Return the beginning of a command that runs a program with the standard library only.

    Args:
        program: Its file's name without the suffix, such as ``probe``.
    """
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name(f"{program}.py"))]
