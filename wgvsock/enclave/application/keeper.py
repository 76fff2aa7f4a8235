"""Keeps the application running: starts it, probes its readiness, restarts it if configured, and reports everything."""

from __future__ import annotations

import asyncio
import logging
import random as pseudorandom
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NoReturn

from wgvsock.enclave.application.probes import Ask, ask
from wgvsock.enclave.application.process import ApplicationProcess, shell_status
from wgvsock.enclave.application.restarts import Restarts
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.errors import ApplicationError
from wgvsock.runtime.tasks import first_of
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.reports import ApplicationState, Phase, StreamName

_ENDED_BY_SIGTERM: Final = 128 + signal.SIGTERM

_CANNOT_START: Final = 127
"""A shell's exit status for a program that it cannot find."""

_log = logging.getLogger(__name__)


class Keeper:
    """Runs one application.

    Args:
        command: Program and arguments.
        settings: How to run it.
        stop_timeout: Seconds that it has to end after SIGTERM.
        ring: Takes the reports.
        clock: Monotonic seconds.
        wall_clock: Unix time in nanoseconds.
        ask: Runs a readiness probe.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: ApplicationSettings,
        *,
        stop_timeout: float,
        ring: Ring,
        clock: Callable[[], float],
        wall_clock: Callable[[], int],
        ask: Ask = ask,
    ) -> None:
        self._command = command
        self._settings = settings
        self._stop_timeout = stop_timeout
        self._ring = ring
        self._clock = clock
        self._wall_clock = wall_clock
        self._ask = ask
        self._restarts = Restarts(settings.restart, pseudorandom.random)
        self._process: ApplicationProcess | None = None
        self._stop = asyncio.Event()
        self._probe = settings.probe()
        ring.state = ApplicationState(probed=self._probe is not None)

    @property
    def is_running(self) -> bool | None:
        """Whether its process is running, or None if it was never started."""
        return None if self._process is None else self._process.is_running

    def stop(self) -> None:
        """Make `run` stop the application."""
        self._stop.set()

    def forward(self, number: int) -> None:
        """Send the application a signal. Does nothing before it runs."""
        if self._process is not None:
            self._process.forward(number)

    async def run(self) -> int:
        """Run the application to its end, restarts included.

        Returns:
            Its exit status, or 0 if it ended on request.

        Raises:
            ApplicationError: It cannot be started.
        """
        while True:
            try:
                returncode, lived = await self._run_once()
            except ApplicationError as error:
                self._report("exited", replace(self._ring.state.ended(_CANNOT_START, Phase.ENDED), why=error.why))
                raise
            status = shell_status(returncode)
            stopping = self._stop.is_set()
            pause = None if stopping else self._restarts.pause(status, lived)
            phase = Phase.ENDED if pause is None else Phase.RESTARTING
            self._report("exited", self._ring.state.ended(returncode, phase))
            if pause is None:
                return 0 if stopping and status == _ENDED_BY_SIGTERM else status
            _log.warning("the application will be restarted", extra=fields(status=status, seconds=pause))
            await first_of(asyncio.sleep(pause), self._stopped())
            if self._stop.is_set():
                self._report("exited", replace(self._ring.state, phase=Phase.ENDED))
                return 0

    async def _run_once(self) -> tuple[int, float]:
        """Run one process. Its return code, and the number of seconds it ran."""
        sink = self._write if self._settings.forward_output else None
        self._process = process = ApplicationProcess(self._command, self._settings, sink)
        await process.start()
        began, state = self._clock(), self._ring.state
        self._report("started", replace(state, phase=Phase.RUNNING, starts=state.starts + 1, ready=None, why=""))
        try:
            await first_of(process.wait(), self._stopped(), self._watch_readiness())
        finally:
            await process.stop(self._stop_timeout)
        return await process.wait(), self._clock() - began

    async def _watch_readiness(self) -> int:
        if self._probe is None:
            await self._never()
        while True:
            why = await self._ask(self._probe, self._settings)
            before = self._ring.state
            if (why is None) is not before.ready:
                after = replace(before, ready=why is None, why=why or "")
                self._report("ready" if after.ready else "not_ready", after)
                _log.info("the application is %sready", "" if after.ready else "not ", extra=fields(why=after.why))
            await asyncio.sleep(self._settings.ready_interval)

    async def _stopped(self) -> int:
        await self._stop.wait()
        return 0

    async def _never(self) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def _write(self, stream: StreamName, data: bytes) -> None:
        self._ring.write(stream, data, self._now_ms())

    def _report(self, event: str, state: ApplicationState) -> None:
        self._ring.change(event, state, self._now_ms())

    def _now_ms(self) -> int:
        return self._wall_clock() // 1_000_000
