"""The laboratory that stays up between two commands: where it is written down, and how it is found again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lab.backends import backend_class
from lab.errors import LabError
from lab.ladder import Ladder


class NotStandingError(LabError):
    """There is no laboratory."""

    code = "WGV-E093"
    exit_code = 3


def record_path() -> Path:
    """The file that describes it (XDG base directory specification)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "wgvsock-lab.json"


def is_standing() -> bool:
    """Whether a laboratory is written down."""
    return record_path().exists()


def write_down(ladder: Ladder) -> None:
    """Remember a laboratory, in its present state."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"backend": ladder.backend.name, "state": ladder.backend.state()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(path)


def find() -> Ladder:
    """The laboratory that is written down.

    Raises:
        NotStandingError: None is.
    """
    try:
        record: dict[str, Any] = json.loads(record_path().read_text())
    except FileNotFoundError:
        raise NotStandingError("there is no laboratory", fix="raise one: make lab-up") from None
    ladder = Ladder(backend_class(record["backend"]).attach(record["state"]))
    ladder.relay, ladder.enclave = ladder.backend.process("relay"), ladder.backend.process("enclave")
    return ladder


def forget() -> None:
    """Forget it."""
    record_path().unlink(missing_ok=True)
