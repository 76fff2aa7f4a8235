"""The laboratory that stays up between two commands: where it is recorded, and how it is found again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.backend import Backend
from lab.backends import backend_class
from lab.errors import LabError
from lab.ladder import Ladder


class NotStandingError(LabError):
    """There is no laboratory."""

    code = "WGV-E098"
    exit_code = 3


def record_path() -> Path:
    """Return the file that describes it (XDG base directory specification)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "wgvsock-lab.json"


def is_standing() -> bool:
    """Return whether a laboratory is recorded."""
    return record_path().exists()


def write_down(backend: Backend) -> None:
    """Record a laboratory in its present state."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"backend": backend.name, "state": backend.state()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(path)


def attach() -> Backend:
    """Return the recorded laboratory, without contacting its machines.

    Raises:
        NotStandingError: None is recorded.
    """
    try:
        record: dict[str, Any] = json.loads(record_path().read_text())
    except FileNotFoundError:
        raise NotStandingError("there is no laboratory", fix="start one: make lab-up") from None
    return backend_class(record["backend"]).attach(record["state"])


def find() -> Ladder:
    """Return the recorded laboratory, with its Relay and Enclave where they run.

    Raises:
        NotStandingError: None is recorded.
    """
    ladder = Ladder(attach())
    ladder.relay, ladder.enclave = ladder.backend.process("relay"), ladder.backend.process("enclave")
    return ladder


@contextlib.contextmanager
def changing() -> Iterator[Ladder]:
    """Provide the laboratory for exclusive changes, and record its state afterwards.

    Raises:
        NotStandingError: There is none.
    """
    if not is_standing():
        raise NotStandingError("there is no laboratory", fix="start one: make lab-up")
    with record_path().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ladder = find()
        try:
            yield ladder
        finally:
            write_down(ladder.backend)


def forget() -> None:
    """Remove the record."""
    record_path().unlink(missing_ok=True)
    record_path().with_suffix(".lock").unlink(missing_ok=True)
