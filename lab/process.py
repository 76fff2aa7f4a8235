"""Commands on this machine that run until they are stopped, with their output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from lab.deadline import Deadline
from lab.errors import LabError

_WITH_STARTER: Final = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
"""PR_SET_PDEATHSIG(2const), kept across exec; takes the starter's process number and the command. A starter that was
gone before the signal was asked for would never be noticed, so it is compared afterwards."""


class LocalProcess:
    """A command in a session of its own; see `lab.backend.Process`.

    Args:
        name: For messages.
        log: Gets its standard output and error, appended.
        pid: Of a command that runs already.
        started: When it was started; compared, so that a number that was given to another is not mistaken.
        offset: Where its output begins in the log, in bytes.
    """

    dies_with_starter: ClassVar[bool] = False
    """Whether what is started ends with the process that started it, even if that is killed. Not where a laboratory
    is to stay up behind its starter."""

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
    ) -> LocalProcess:
        """Start a command.

        Args:
            name: For messages.
            argv: The command.
            log: Gets standard output and error, appended.
            stdin: A pipe, if the command is to be told things.
            environment: Added to ours.
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
        """What `adopt` needs to find it again."""
        return {"name": self.name, "log": str(self.log), "pid": self.pid, "started": self._started}

    @classmethod
    def adopt(cls, description: Mapping[str, Any]) -> LocalProcess:
        """A command that another process of ours has started, and left running."""
        return cls(
            description["name"], Path(description["log"]), pid=description["pid"], started=description["started"]
        )

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe; only with ``stdin=True``."""
        if self._child is None or self._child.stdin is None:
            raise LabError(f"{self.name} has no standard input")
        return self._child.stdin

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs; 0 for an adopted one that is gone."""
        if self._child is not None:
            return self._child.poll()
        return None if _start_time(self.pid) == self._started else 0

    def signal(self, signum: int) -> None:
        """Send a signal to the command; nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL for the command and its process group, and wait until it is gone; idempotent."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(Deadline(10))
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()

    def wait(self, deadline: Deadline) -> int:
        """Its exit code.

        Raises:
            LabTimeoutError: It still runs.
        """
        return deadline.poll(lambda: None if (code := self.poll()) is None else (code,), f"{self.name} to end")[0]

    def output(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as stream:
            stream.seek(self._offset)
            return stream.read().decode(errors="replace")

    def wait_for_line(self, wanted: str, deadline: Deadline) -> str:
        """The first line that contains some text.

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
    """Field 22 of /proc/PID/stat (proc(5)), in clock ticks since boot; empty when there is no such process any more."""
    try:
        _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return ""
    state, *rest = fields.split()
    return "" if state == "Z" else rest[18]
