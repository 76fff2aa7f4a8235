"""Commands on this machine that run until they are stopped, with their output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Self

from lab.deadline import Deadline
from lab.errors import LabError

_WITH_STARTER: Final = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
"""Sets PR_SET_PDEATHSIG(2const), which survives exec. Takes the starter's process ID and the command. If the starter
ended before the signal was set, that would never be noticed, so the ID is compared afterwards.
"""


class LocalProcess:
    """A command in its own session. See `lab.backend.Process`.

    Args:
        name: For messages.
        log: Receives its standard output and error, appended.
        pid: ID of a command that is already running.
        started: Its start time, compared so that a reused process ID is not mistaken for it.
        offset: Where its output begins in the log, in bytes.
    """

    dies_with_starter: ClassVar[bool] = False
    """Whether a started command ends with the process that started it, even if that is killed. Not for a laboratory
    that outlives its starter.
    """

    def __init__(self, name: str, log: Path, *, pid: int, started: str, offset: int = 0) -> None:
        self.name = name
        self.log = log
        self.pid = pid
        self._started = started
        self._offset = offset
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a command.

        Args:
            name: For messages.
            argv: The command.
            log: Receives standard output and error, appended.
            stdin: Whether to connect a pipe to its standard input.
            environment: Added to this process's environment.
        """
        offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*_WITH_STARTER, str(os.getpid()), *argv] if cls.dies_with_starter else list(argv),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        process = cls(name, log, pid=child.pid, started=_start_time(child.pid), offset=offset)
        process._child = child
        return process

    def describe(self) -> dict[str, Any]:
        """Return what `adopt` needs to find it again."""
        return {"name": self.name, "log": str(self.log), "pid": self.pid, "started": self._started}

    @classmethod
    def adopt(cls, description: Mapping[str, Any]) -> LocalProcess:
        """Return a command that another process of the laboratory started and left running."""
        return cls(
            description["name"], Path(description["log"]), pid=description["pid"], started=description["started"]
        )

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe. Only with ``stdin=True``."""
        if self._child is None or self._child.stdin is None:
            raise LabError(f"{self.name} has no standard input")
        return self._child.stdin

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal, or None while it runs. 0 for an adopted one that is gone."""
        if self._child is not None:
            return self._child.poll()
        return None if _start_time(self.pid) == self._started else 0

    def signal(self, signum: int) -> None:
        """Send a signal to the command. Does nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL to the command and its process group, and wait until it is gone. Idempotent."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(Deadline(10))
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()

    def wait(self, deadline: Deadline) -> int:
        """Wait for its end, and return its exit code.

        Raises:
            LabTimeoutError: It is still running.
        """
        return deadline.poll(lambda: None if (code := self.poll()) is None else (code,), f"{self.name} to end")[0]

    def output(self) -> str:
        """Return its output since it was started."""
        with self.log.open("rb") as stream:
            stream.seek(self._offset)
            return stream.read().decode(errors="replace")

    def wait_for_line(self, wanted: str, deadline: Deadline) -> str:
        """Wait for the first line that contains some text, and return it.

        Raises:
            LabError: The command ended without writing it.
            LabTimeoutError: It has not written it yet.
        """

        def look() -> str | None:
            ended = self.poll() is not None
            text = self.output()
            for line in text.splitlines():
                if wanted in line:
                    return line
            if ended:
                raise LabError(f"{self.name} ended with {self.poll()}", why=text[-2000:])
            return None

        return deadline.poll(look, f"{self.name} to say {wanted!r}")


def _start_time(pid: int) -> str:
    """Return field 22 of /proc/PID/stat (proc(5)), in clock ticks since boot. Empty if the process is gone."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return ""
    state, *rest = fields.split()
    return "" if state == "Z" else rest[18]


def processor_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, in seconds.

    The scheduler counts nanoseconds (Documentation/scheduler/sched-stats.rst). Clock ticks would be off by 20 % over
    two seconds.
    """
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def processor_shares(pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Wait, and return the share of a core that each process has used meanwhile.

    Args:
        pids: Process IDs by name.
        seconds: How long.
    """
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: (processor_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}
