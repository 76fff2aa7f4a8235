"""Commands on this machine that run until they are stopped, with their output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lab.deadline import Deadline
from lab.errors import LabError


class LoggedProcess(ABC):
    """A running command that appends its output to a file; see `lab.backend.Process`.

    Args:
        name: For messages.
        log: Gets standard output and error, appended.
    """

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._start = log.stat().st_size if log.exists() else 0

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""

    @abstractmethod
    def signal(self, signum: int) -> None:
        """Send a signal to the command; nothing when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL for the command and its process group, and wait until it is gone; idempotent."""

    def terminate(self, deadline: Deadline) -> int:
        """SIGTERM, and its exit code; SIGKILL when it does not heed.

        Raises:
            LabTimeoutError: It did not end by itself.
        """
        self.signal(signal.SIGTERM)
        try:
            return self.wait(deadline)
        finally:
            self.kill()

    def wait(self, deadline: Deadline) -> int:
        """Its exit code.

        Raises:
            LabTimeoutError: It still runs.
        """
        return deadline.poll(lambda: None if (code := self.poll()) is None else (code,), f"{self.name} to end")[0]

    def output(self) -> str:
        """What it has written since it was started."""
        with self.log.open("rb") as stream:
            stream.seek(self._start)
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


class LocalProcess(LoggedProcess):
    """A child in a session of its own; see `lab.backend.Process`.

    Args:
        name: For messages.
        argv: The command.
        log: Gets standard output and error, appended.
        stdin: A pipe, if the command is to be told things.
        environment: Added to ours.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, log)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Process identifier of the command."""
        return self._child.pid

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe; only with ``stdin=True``."""
        if self._child.stdin is None:
            raise LabError(f"{self.name} has no standard input")
        return self._child.stdin

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""
        return self._child.poll()

    def signal(self, signum: int) -> None:
        """Send a signal to the command; nothing when it has ended."""
        self._child.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL for the command and its process group, and wait until it is gone; idempotent."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
