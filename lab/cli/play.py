"""Runs a playbook through ansible-runner and reports its event stream. Only this module imports ansible-runner.

Ansible keeps nothing outside the folder that it is given, which holds its home, its temporary files and the run's
record.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError, LabUnavailableError, Unavailable

ANSIBLE: Final = Path(__file__).parents[1] / "ansible"
PLAYBOOK: Final = ANSIBLE / "site.yml"
INVENTORY: Final = ANSIBLE / "inventory.py"

_INCLUDE: Final = "ansible.builtin.include_tasks"  # does nothing itself

_STANDS: Final = (
    "the laboratory stays up: see python -m lab status, python -m lab logs relay, "
    "then make lab-up again or make lab-down"
)

_OUTPUT_TAIL: Final = 2000
"""Characters of a command's output in an error."""


class PlayError(LabError):
    """A task failed, or Ansible itself did."""

    code = "WGV-E099"


@dataclass(frozen=True, slots=True)
class PlayResult:
    """The results of a successful playbook, summed over all machines."""

    ok: int
    changed: int


class Progress:
    """Turns runner's events into lines, one per task and one with the time of each play, and into totals.

    Args:
        say: Takes a line.
        clock: Returns monotonic seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.result: PlayResult | None = None
        self.failure: PlayError | None = None
        self.last = "no task has ended"
        self._say = say
        self._clock = clock
        self._play = ("", clock())

    def handle(self, event: Mapping[str, Any]) -> None:
        """Process one event (https://docs.ansible.com/projects/runner/en/stable/intro/#runner-artifact-job-events)."""
        data = event.get("event_data", {})
        match event["event"]:
            case "playbook_on_play_start":
                self._end_play()
                self._play = (data["name"], self._clock())
            case "runner_on_ok" if data["task_action"] != _INCLUDE:
                note = ", changed" if data["res"].get("changed") else ""
                self.last = f"the last task that ended is {data['task']!r} on {data['host']}"
                self._say(f"{'':12}{data['host']}: {data['task']} ({data.get('duration', 0):.1f} s{note})")
            case "runner_on_failed" | "runner_on_unreachable" if not data.get("ignore_errors"):
                reason = _reason(data["res"])
                self.failure = self.failure or PlayError(
                    f"{data['task']!r} failed on {data['host']}", why=reason, fix=_STANDS
                )
            case "playbook_on_stats":
                self._end_play()
                self.result = PlayResult(ok=sum(data["ok"].values()), changed=sum(data["changed"].values()))

    def _end_play(self) -> None:
        name, begin = self._play
        if name:
            self._say(f"{self._clock() - begin:7.2f} s  {name}")


def _reason(result: Mapping[str, Any]) -> str:
    """Return the text of a failed task's result. A raw command's result has output instead of a message."""
    texts = (str(result.get(key) or "").strip() for key in ("msg", "stderr", "stdout"))
    return "\n".join(text for text in texts if text)[-_OUTPUT_TAIL:]


def unavailable() -> Unavailable | None:
    """Return what keeps Ansible from running here, or None. Its workers share semaphores in /dev/shm."""
    try:
        multiprocessing.get_context("fork").Lock()
    except FileNotFoundError:
        return Unavailable("missing", "/dev/shm", "mount -t tmpfs -o mode=1777 tmpfs /dev/shm")  # noqa: S108
    except OSError as error:
        return Unavailable("forbidden", f"/dev/shm ({error.strerror})", "chmod 1777 /dev/shm")  # noqa: S108
    return None


def require() -> None:
    """Check that Ansible can run here.

    Raises:
        LabUnavailableError: It cannot.
    """
    if reason := unavailable():
        raise LabUnavailableError("Ansible cannot run here", why=f"{reason.kind}: {reason.what}", fix=reason.fix)


def play(
    directory: Path,
    say: Callable[[str], None],
    *,
    timeout: float,
    playbook: Path = PLAYBOOK,
    inventory: Path = INVENTORY,
) -> PlayResult:
    """Run a playbook.

    Args:
        directory: For everything that Ansible writes. The record of the last run replaces the previous one.
        say: Gets a line for each play and each task's outcome.
        timeout: Seconds after which it is ended. Ansible forks its workers beside a running thread, and would wait for
            ever for one that inherited a lock.
        playbook: The playbook.
        inventory: Its inventory.

    Raises:
        PlayError: A task failed and the playbook was stopped, or it did not end in time.
    """
    import ansible_runner

    progress = Progress(say)
    shutil.rmtree(directory / "artifacts", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    runner = ansible_runner.run(
        private_data_dir=str(directory),
        playbook=str(playbook),
        inventory=str(inventory),
        envvars=environment(directory),
        event_handler=progress.handle,
        suppress_env_files=True,
        quiet=True,
        timeout=math.ceil(timeout),
    )
    if progress.failure is not None:
        raise progress.failure
    if runner.status == "timeout":
        raise PlayError(f"the playbook did not end within {timeout:.0f} s", why=progress.last, fix=_STANDS)
    if runner.rc != 0 or progress.result is None:
        with runner.stdout as output:
            why = output.read().strip()[-_OUTPUT_TAIL:]
        raise PlayError(f"ansible-playbook ended with {runner.rc}", why=why)
    return progress.result


def environment(directory: Path) -> dict[str, str]:
    """Return the variables that keep Ansible in its folder, in this interpreter and, as it requires, in UTF-8."""
    return {
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory),
        "ANSIBLE_REMOTE_TEMP": str(directory / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
