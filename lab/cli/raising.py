"""A permanent laboratory: started by its backend, provisioned and verified by Ansible, taken down again.

``lab up`` on a running one checks it again, which changes nothing if all is well. A step that fails stops the rest.
Logs, consoles and captures are kept.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.backend import Backend
from lab.backends import backend_class, choose
from lab.cli import standing
from lab.cli.invocation import as_typed
from lab.cli.play import PlayResult, play, require
from lab.errors import LabError
from lab.image.errors import PackageError
from lab.ladder import Ladder
from lab.topology import Node

ARTIFACTS: Final = Path("artifacts/lab-up")

READY_TIMEOUT: Final = 20
"""Seconds for the tunnel to become ready, on a machine that runs natively."""

PLAY_TIMEOUT: Final = 180
"""Seconds for the playbook, which takes 10 on a machine that runs natively."""

_HEARTBEAT: Final = 10.0
"""Seconds: about as long as a person waits before checking whether anything happens."""

_LAST_WORDS: Final = 1000
"""Characters of a log."""


def raise_up(asked: str) -> PlayResult:
    """Bring a laboratory up, or check the running one. Afterwards it is ready and has answered a request each way.

    Args:
        asked: The backend's name. Empty: that of the running laboratory, otherwise the best that runs here.

    Raises:
        LabError: A step failed. A laboratory whose machines run stays up, for inspection.
    """
    begin = time.monotonic()
    require()  # before anything boots
    backend = _standing(asked) or _raise(asked)
    backend.detach()
    try:
        result = play(backend.directory / "ansible", say, timeout=backend.deadline(PLAY_TIMEOUT).seconds)
    except LabError:
        _keep(standing.attach())
        raise
    say(f"{_seconds(begin)}  in all; Ansible: {result.ok} tasks, {result.changed} changed something")
    return result


def _standing(asked: str) -> Backend | None:
    """Return the running laboratory, if it can be checked again."""
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
    say(f"the {backend.name} laboratory is up, and is checked again")
    return backend


def _broken(backend: Backend) -> str:
    """Return why a laboratory cannot be checked again, or an empty text."""
    for name in backend.own_processes:
        if backend.process(name) is None:
            return f"{name} is not running"
    try:
        for node in backend.topology.nodes:
            backend.run(node, ["true"]).check()
    except LabError as error:
        return error.what
    return ""


def prepare(asked: str) -> type[Backend]:
    """Download and build what a backend needs and what outlives its laboratories, and return the backend.

    Raises:
        LabError: It is not available.
    """
    name, why = choose(asked)
    say(f"backend {name}: {why}")
    chosen = backend_class(name)
    say(f"this takes {chosen.takes}" + ("" if name == "netns" else "; LAB=netns takes seconds, and boots no guest"))
    timed("packages and image downloaded and built, or found in the cache", chosen.prepare)
    return chosen


def why_not_here(chosen: type[Backend]) -> str:
    """Return what keeps this machine from a backend, or fill its cache. Failed downloads count too."""
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
    with contextlib.suppress(LabError, OSError):  # the reason for being here is the one to report
        backend.keep_artifacts(ARTIFACTS)
        say(f"logs, consoles and captures are kept in {ARTIFACTS}")


def wait_until_ready(ladder: Ladder) -> None:
    """Wait for the tunnel of a laboratory whose Relay and Enclave have been started.

    Raises:
        LabError: A service has ended, or the Relay refuses the Enclave, which no other can replace.
        LabTimeoutError: It is not ready in time.
    """
    for name, process in (("relay", ladder.relay), ("enclave", ladder.enclave)):
        if process is None:
            raise LabError(f"the {name} is not running", why=_last_words(ladder.backend, name))
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
    """Take the laboratory down, and describe what is left of it, in words.

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
    """Print progress to standard error."""
    with contextlib.suppress(OSError):  # nobody reads standard error: the exit status still says how it ended
        print(as_typed(text), file=sys.stderr, flush=True)


def timed(what: str, work: Callable[[], object], *, heartbeat: float = _HEARTBEAT) -> None:
    """Run a phase, and print how long it took. A long one reports in between that it continues.

    Args:
        what: The phase, in words that hold once it is done.
        work: Runs it.
        heartbeat: Seconds between two signs of life.
    """
    begin = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(heartbeat):
            say(f"{_seconds(begin)}  … not yet: {what}")

    sign_of_life = threading.Thread(target=beat, daemon=True)
    sign_of_life.start()
    try:
        work()
    finally:
        done.set()
        sign_of_life.join()
    say(f"{_seconds(begin)}  {what}")


def _seconds(begin: float) -> str:
    return f"{time.monotonic() - begin:7.2f} s"
