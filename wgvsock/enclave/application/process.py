"""One process of the application: starts it, forwards signals, waits for it, and stops it with its whole group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from typing import Any, Final

from wgvsock.enclave.application.output import OutputPipe, Sink
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.errors import ApplicationError
from wgvsock.telemetry.logs import fields

FORWARDED_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that the agent forwards unchanged. SIGTERM and SIGINT end both processes."""

_PR_SET_PDEATHSIG: Final = 1

_log = logging.getLogger(__name__)


class ApplicationProcess:
    """One child process, in its own process group.

    Args:
        command: Program and arguments.
        settings: How to run it.
        sink: Takes its output, or None to let it inherit our standard streams.
    """

    def __init__(
        self, command: Sequence[str], settings: ApplicationSettings | None = None, sink: Sink | None = None
    ) -> None:
        self._command = list(command)
        self._settings = settings or ApplicationSettings()
        self._sink = sink
        self._pipes: list[OutputPipe] = []
        self._process: Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, once.

        Raises:
            ApplicationError: The program or the user does not exist, or the program cannot be run.
        """
        streams: dict[str, Any] = {}
        try:
            if self._sink is not None:
                self._pipes = [OutputPipe("stdout", self._sink), OutputPipe("stderr", self._sink)]
                streams = {pipe.stream: pipe.writing for pipe in self._pipes}
            self._process = await asyncio.create_subprocess_exec(
                self._command[0],
                *self._command[1:],
                process_group=0,
                preexec_fn=die_with_parent(),  # one system call
                cwd=self._settings.working_directory,
                env={**os.environ, **dict(variable.split("=", 1) for variable in self._settings.env)},
                **identity(self._settings.user),
                **streams,
            )
        except (OSError, KeyError, ValueError) as error:
            self._close_pipes()
            raise ApplicationError(
                f"cannot start the application {self._command[0]}",
                why=getattr(error, "strerror", None) or str(error),
                fix="name an executable file after `--` (an enclave mounts /tmp and /run noexec)",
            ) from error
        for pipe in self._pipes:
            pipe.start()
        _log.info("the application has started", extra=fields(command=self._command[0], pid=self._process.pid))

    async def wait(self) -> int:
        """Wait for its end, after `start`. Everything that it wrote has then gone to the sink.

        Returns:
            Its return code, or -N if signal N killed it.
        """
        assert self._process is not None  # noqa: S101 - after `start`
        code = await self._process.wait()
        self._close_pipes()
        return code

    def forward(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the event loop does not know yet
                os.kill(self._process.pid, number)

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the point
        """Send it SIGTERM, and SIGKILL to its whole group if it is still running after `timeout` seconds."""
        if self._process is None:
            return
        if self.is_running:
            self.forward(signal.SIGTERM)
            try:
                async with asyncio.timeout(timeout):
                    await self.wait()
            except TimeoutError:
                _log.warning("the application did not end in time and is killed", extra=fields(seconds=timeout))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
        _log.info("the application has ended", extra=fields(status=shell_status(await self.wait())))

    def _close_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._pipes.clear()


def shell_status(returncode: int) -> int:
    """The exit status as a shell reports it: 128 + N for signal N."""
    return returncode if returncode >= 0 else 128 - returncode


def identity(user: str | None) -> dict[str, Any]:
    """Arguments for a child process that runs as another user.

    A name without a group gets that user's groups. Any other form gets exactly one group. Numbers need no /etc/passwd,
    which an enclave's image may lack.

    Args:
        user: ``NAME`` or ``NUMBER``, optionally followed by ``:GROUP``. A number alone is user and group. None keeps
            ours.

    Raises:
        KeyError: The user or the group does not exist.
    """
    if user is None:
        return {}
    import grp
    import pwd

    name, _, group = user.partition(":")
    if group:
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        uid = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
        return {"user": uid, "group": gid, "extra_groups": []}
    if name.isdecimal():
        return {"user": int(name), "group": int(name), "extra_groups": []}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(name, entry.pw_gid)}


def die_with_parent() -> Callable[[], None] | None:
    """A hook for the child between fork and exec: the kernel will kill it when the agent dies.

    An enclave ends with its first process anyway, so an image that lacks libffi does without the hook.

    Returns:
        The hook, or None without libffi.
    """
    try:
        import ctypes
    except ImportError:
        return None
    prctl = ctypes.CDLL(None).prctl

    def set_parent_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return set_parent_death_signal
