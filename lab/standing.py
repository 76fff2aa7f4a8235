"""The laboratory that stays up between two commands: where it is written down, and how it is found again."""

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
    """The file that describes it (XDG base directory specification)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "wgvsock-lab.json"


def is_standing() -> bool:
    """Whether a laboratory is written down."""
    return record_path().exists()


def write_down(backend: Backend) -> None:
    """Remember a laboratory, in its present state."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"backend": backend.name, "state": backend.state()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(path)


def attach() -> Backend:
    """The laboratory that is written down; none of its machines is asked anything.

    Raises:
        NotStandingError: None is.
    """
    try:
        record: dict[str, Any] = json.loads(record_path().read_text())
    except FileNotFoundError:
        raise NotStandingError("there is no laboratory", fix="raise one: make lab-up") from None
    return backend_class(record["backend"]).attach(record["state"])


def find() -> Ladder:
    """The laboratory that is written down, with its Relay and Enclave where they run.

    Raises:
        NotStandingError: None is.
    """
    ladder = Ladder(attach())
    ladder.relay, ladder.enclave = ladder.backend.process("relay"), ladder.backend.process("enclave")
    return ladder


@contextlib.contextmanager
def changing() -> Iterator[Ladder]:
    """The laboratory, to be changed by nobody else meanwhile, and written down afterwards as it is then.

    Raises:
        NotStandingError: There is none.
    """
    if not is_standing():
        raise NotStandingError("there is no laboratory", fix="raise one: make lab-up")
    with record_path().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ladder = find()
        try:
            yield ladder
        finally:
            write_down(ladder.backend)


def forget() -> None:
    """Forget it."""
    record_path().unlink(missing_ok=True)
    record_path().with_suffix(".lock").unlink(missing_ok=True)
