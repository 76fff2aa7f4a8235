"""The application inside the enclave: started once the link is up, given our signals, its exit status passed on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from wgvsock.enclave.errors import ApplicationError
from wgvsock.telemetry.logs import fields

FORWARDED_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""What the agent hands on as it is; SIGTERM and SIGINT end both."""

_PR_SET_PDEATHSIG: Final = 1

_log = logging.getLogger(__name__)


class Application:
    """One child process, in a process group of its own, with our standard streams.

    The agent is often an enclave's first process: orphans become its children, and it reaps them.

    Args:
        command: Program and arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and not self._status.done()

    def start(self) -> None:
        """Start it, once.

        Raises:
            ApplicationError: There is no such program, or it cannot be run.
        """
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            self._process = subprocess.Popen(
                self._command,
                process_group=0,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one system call
            )
        except OSError as error:
            raise ApplicationError(
                f"cannot start the application {self._command[0]}",
                why=error.strerror or str(error),
                fix="name an executable file behind `--`; in an enclave /tmp and /run are mounted noexec",
            ) from error
        _log.info("the application is started", extra=fields(command=self._command[0], pid=self._process.pid))
        self._reap()  # it may have ended before the handler was there

    async def wait(self) -> int:
        """Its exit status, as a shell tells it: 128 + N for signal N."""
        return await asyncio.shield(self._status)

    def forward(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self.is_running:
            os.kill(self._process.pid, number)

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the point
        """SIGTERM, and SIGKILL to its whole group after `timeout` seconds."""
        if self._process is None or not self.is_running:
            return
        self.forward(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self.wait()
        except TimeoutError:
            _log.warning("the application does not end and is killed", extra=fields(seconds=timeout))
            os.killpg(self._process.pid, signal.SIGKILL)
            await self.wait()

    def _reap(self) -> None:
        """Collect every child that has ended: the application, and orphans when we are process 1."""
        process = self._process
        if process is None:
            return
        wanted = -1 if os.getpid() == 1 else process.pid
        while True:
            try:
                pid, status = os.waitpid(wanted, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == process.pid:
                code = os.waitstatus_to_exitcode(status)
                process.returncode = code  # so that Popen does not wait for it again
                self._status.set_result(code if code >= 0 else 128 - code)
                _log.info("the application has ended", extra=fields(status=self._status.result()))


def _die_with_parent() -> Callable[[], None] | None:
    """For the child between fork and exec: be killed when the agent is.

    In an enclave that is so anyway, for the enclave ends with its first process; its image may lack libffi too.
    """
    try:
        import ctypes
    except ImportError:
        return None
    prctl = ctypes.CDLL(None).prctl

    def set_parent_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return set_parent_death_signal
