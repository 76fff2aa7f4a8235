"""The version, commit and build of this wgvsock, as the build wrote them into the package (setup.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from wgvsock import __version__

_STAMP: Final = Path(__file__).with_name("build.json")
_COMPILED: Final = "framing"
"""One of the modules that a compiled build compiles. It compiles all of them or none (setup.py)."""


@dataclass(frozen=True, slots=True)
class Release:
    """What distinguishes packages of the same version.

    Attributes:
        version: From pyproject.toml.
        commit: 40 hexadecimal digits, followed by ``+changes`` if files differed. None in a checkout.
        build: The builder's name for the build, by default the commit's time in UTC. None in a checkout.
        compiled: Whether this Python loads the modules of the packet path as machine code.
    """

    version: str
    commit: str | None = None
    build: str | None = None
    compiled: bool = False


@lru_cache(maxsize=4)
def release(stamp: Path = _STAMP) -> Release:
    """Read the build's stamp, once. A checkout has none, and an unreadable stamp counts as none."""
    # The files that Python's import looks for first: this reports what runs, not what somebody meant to build.
    compiled = any(stamp.with_name(_COMPILED + suffix).exists() for suffix in EXTENSION_SUFFIXES)
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
        return Release(__version__, found["commit"], found["build"], compiled)
    except (OSError, ValueError, KeyError, TypeError):
        return Release(__version__, compiled=compiled)
