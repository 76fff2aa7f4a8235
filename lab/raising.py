"""A laboratory that stays: raised by its backend, provisioned and verified by Ansible, taken down again.

``lab up`` on one that stands goes over it again, which changes nothing where nothing is amiss. A step that fails stops
the rest; logs, consoles and captures are kept.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab import standing
from lab.backend import Backend
from lab.backends import backend_class, choose
from lab.errors import LabError
from lab.ladder import Ladder
from lab.play import PlayResult, play
from lab.qemu.errors import PackageError
from lab.topology import Node

ARTIFACTS: Final = Path("artifacts/lab-up")

READY_TIMEOUT: Final = 20
"""Seconds that the tunnel has to become ready, on a machine that runs natively."""

_LAST_WORDS: Final = 1000
"""Characters of a log."""


def raise_up(asked: str) -> PlayResult:
    """Bring a laboratory up, or go over the one that stands; it is then ready and has answered a request each way.

    Args:
        asked: The backend's name; empty for the one that stands, else the best that runs here.

    Raises:
        LabError: A step failed. A laboratory whose machines run stays up, to be looked at.
    """
    begin = time.monotonic()
    backend = _standing(asked) or _raise(asked)
    backend.detach()
    try:
        result = play(backend.directory / "ansible", say)
    except LabError:
        _keep(standing.attach())
        raise
    say(f"{_seconds(begin)}  in all; Ansible: {result.ok} tasks, {result.changed} changed something")
    return result


def _standing(asked: str) -> Backend | None:
    """The laboratory that stands, if it can be gone over."""
    if not standing.is_standing():
        return None
    backend = standing.attach()
    if asked and asked != backend.name:
        raise LabError(
            f"a {backend.name} laboratory is up", why=f"{asked} is asked for", fix="make lab-down, then again"
        )
    if broken := _broken(backend):
        say(f"the {backend.name} laboratory is broken, and is taken down first: {broken}")
        take_down()
        return None
    say(f"the {backend.name} laboratory is up, and is gone over again")
    return backend


def _broken(backend: Backend) -> str:
    """Why a laboratory cannot be gone over again, or nothing."""
    for name in backend.own_processes:
        if backend.process(name) is None:
            return f"{name} does not run"
    try:
        for node in Node:
            backend.run(node, ["true"]).check()
    except LabError as error:
        return error.what
    return ""


def prepare(asked: str) -> type[Backend]:
    """Download and build what a backend needs and what outlives its laboratories; the backend.

    Raises:
        LabError: It cannot be had.
    """
    name, why = choose(asked)
    say(f"backend {name}: {why}")
    chosen = backend_class(name)
    timed("packages and image downloaded and built, or found in the cache", chosen.prepare)
    return chosen


def why_not_here(chosen: type[Backend]) -> str:
    """What keeps this machine from a backend, also that its packages cannot be fetched; else its cache is filled."""
    if reason := chosen.unavailable():
        return str(reason)
    try:
        chosen.prepare()
    except PackageError as error:
        return str(error)
    return ""


def _raise(asked: str) -> Backend:
    chosen = prepare(asked)
    backend = chosen(f"up{os.getpid():x}")
    try:
        timed("machines booted; network, servers, signer and tap up", backend.up)
        say(f"processors: {backend.processors}")
        say(f"security module: {backend.nsm_device}")
    except BaseException:
        _keep(backend)
        backend.down()
        raise
    standing.write_down(backend)
    return backend


def _keep(backend: Backend) -> None:
    with contextlib.suppress(LabError, OSError):  # the reason why we are here is the one to be told
        backend.keep_artifacts(ARTIFACTS)
        say(f"logs, consoles and captures are kept in {ARTIFACTS}")


def wait_until_ready(ladder: Ladder) -> None:
    """Wait for the tunnel of a laboratory whose Relay and Enclave have been started.

    Raises:
        LabError: A service has ended, or the Relay refuses the Enclave: there is no other that could come.
        LabTimeoutError: It is not ready in time.
    """
    for name, process in (("relay", ladder.relay), ("enclave", ladder.enclave)):
        if process is None:
            raise LabError(f"the {name} does not run", why=_last_words(ladder.backend, name))
    refused_before = _refusals(ladder.backend)

    def look() -> bool:
        if ladder.look_ready():
            return True
        if _refusals(ladder.backend) > refused_before:
            raise LabError("the Relay refuses the Enclave", why=_last_words(ladder.backend, "relay"))
        return False

    ladder.backend.deadline(READY_TIMEOUT).poll(look, "the tunnel to be ready")


def _refusals(backend: Backend) -> int:
    status = backend.status(Node.POD)
    return 0 if status is None else int(status["provisioning"]["attempts"]["rejected"])


def _last_words(backend: Backend, name: str) -> str:
    backend.refresh_logs()
    log = backend.directory / f"logs/{name}.log"
    return log.read_text(errors="replace")[-_LAST_WORDS:] if log.exists() else "it was never started"


def take_down() -> list[str]:
    """Take the laboratory away; what is left of it, in words.

    Raises:
        NotStandingError: There is none.
    """
    ladder = standing.find()
    with contextlib.suppress(LabError):
        ladder.stop()
    ladder.backend.down()
    standing.forget()
    return ladder.backend.leftovers()


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def timed(what: str, work: Callable[[], object]) -> None:
    """Do a phase and say how long it took."""
    begin = time.monotonic()
    work()
    say(f"{_seconds(begin)}  {what}")


def _seconds(begin: float) -> str:
    return f"{time.monotonic() - begin:7.2f} s"
