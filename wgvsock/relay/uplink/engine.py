"""Manages the engine's process: starts it, sends it orders, and restarts it when it ends.

The engine parses an enclave's packets in C. If it ends, only the connections through it are lost. The tunnel, its keys
and its attestation do not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wgvsock.errors import RemoteProtocolError, WgvsockError
from wgvsock.machine.base import Child, RelayMachine
from wgvsock.relay.uplink.base import EngineSnapshot
from wgvsock.runtime.backoff import Backoff
from wgvsock.runtime.tasks import wait_for_event
from wgvsock.telemetry.logs import fields
from wgvsock.uplink.errors import EngineStartError, PortError
from wgvsock.uplink.orders import MAX_MESSAGE, Begin, End, Publish, Report, decode_report

START_SECONDS: Final = 10.0
"""Seconds until the first report, in which the process loads an interpreter and a library."""

FINISH_SECONDS: Final = 0.5
"""Until an engine has ended all connections: some ten milliseconds for a thousand."""
FINISH_TURNS: Final = 16
"""Of the event loop, in which the tunnel takes what the enclave is told."""

STEADY: Final = 10.0
"""Seconds of running after which the back-off is reset, so that a new engine is started at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    child: Child
    orders: socket.socket
    since: float


class EngineProcess:
    """The engine of one enclave, from `start` to `stop`.

    Args:
        machine: Starts processes, and has the clock.
        packets: The engine's end of the pair of sockets for packets.
        drain: Called before a new engine starts, to discard the packets in transit.
        random: Random numbers from 0 to 1, for the pauses between starts.
    """

    def __init__(
        self, machine: RelayMachine, packets: socket.socket, drain: Callable[[], None], random: Callable[[], float]
    ) -> None:
        self.restarts = 0
        self.report = Report()
        self._machine = machine
        self._packets = packets
        self._drain = drain
        self._backoff = Backoff(random, first=0.1, longest=5.0)
        self._begin: Begin | None = None
        self._wanted = Publish()
        self._running: _Running | None = None
        self._task: asyncio.Task[None] | None = None
        self._reported = asyncio.Event()
        self._problem: WgvsockError | None = None
        self._finishing = False
        self._failed: dict[str, int] = {}

    @property
    def is_running(self) -> bool:
        """Whether an engine runs and has reported."""
        return self._running is not None and bool(self.report.version)

    @property
    def problem(self) -> WgvsockError | None:
        """What is wrong with the engine, or None."""
        if self._problem is not None:
            return self._problem
        return next((_port_error(text, number) for text, number in self._failed.items()), None)

    async def start(self, begin: Begin, wanted: Publish) -> None:
        """Start an engine and keep one running. Returns after the first report.

        Args:
            begin: The first order to each engine.
            wanted: The ports to forward to the enclave.

        Raises:
            EngineStartError: The engine does not start.
        """
        if self._task is not None:
            if begin == self._begin:
                self.publish(wanted)
                return
            await self.stop()
        self._begin, self._wanted = begin, wanted
        self._problem, self.report = None, Report()
        self._reported.clear()
        self._task = asyncio.ensure_future(self._keep())
        await wait_for_event(self._reported, START_SECONDS)
        if not self.is_running:
            problem = self._problem or _no_start("it has not reported in time")
            await self.stop()
            raise problem

    def publish(self, wanted: Publish) -> None:
        """Forward exactly these ports to the enclave from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._failed = {}
            self._send_ports()

    async def finish(self) -> None:
        """Have it end all connections and tell the enclave, and stop it."""
        if self._running is not None:
            self._finishing = True
            with contextlib.suppress(OSError, TimeoutError):
                self._running.orders.send(End().encode())
                async with asyncio.timeout(FINISH_SECONDS):
                    await self._running.child.wait()
                for _ in range(FINISH_TURNS):
                    await asyncio.sleep(0)
        await self.stop()

    async def stop(self) -> None:
        """End the engine and all its sockets. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._problem, self._failed, self._finishing = None, {}, False

    def snapshot(self, limit: int) -> EngineSnapshot:
        """The engine's state at this moment, whose maximum number of connections is `limit`."""
        report = self.report
        return EngineSnapshot(
            running=self.is_running,
            pid=None if self._running is None else self._running.child.pid,
            version=report.version,
            restarts=self.restarts,
            connections=report.connections,
            max_connections=limit,
            crowded=report.crowded,
            dropped=report.dropped,
            odd=report.odd,
            resident=report.resident,
            sandbox_missing=report.sandbox,
        )

    # The task.

    async def _keep(self) -> None:
        while True:
            began = self._machine.monotonic()
            try:
                status = await self._run_once()
            except OSError as error:
                self._problem = _no_start(error.strerror or str(error))
            else:
                self._problem = _no_start(f"it ended with status {status}")
            if self._finishing:
                return
            self.report = Report()
            self._reported.set()
            lived = self._machine.monotonic() - began
            if lived >= STEADY:
                self._backoff.reset()
            pause = 0.0 if lived >= STEADY else self._backoff.next_delay()
            self.restarts += 1
            _log.warning("the uplink's engine has ended", extra=fields(why=self._problem.why, again_in=pause))
            await asyncio.sleep(pause)

    async def _run_once(self) -> int:
        """Run one engine from its start to its end, and return its exit status."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop = asyncio.get_running_loop()
        with ours:
            ours.setblocking(False)
            with theirs:
                self._drain()
                child = await self._machine.start_engine(self._packets, theirs)
            self._running = _Running(child, ours, self._machine.monotonic())
            loop.add_reader(ours, self._hear, ours)
            try:
                assert self._begin is not None  # noqa: S101 - `start` has set it
                ours.send(self._begin.encode())
                self._send_ports()
                return await child.wait()
            finally:
                loop.remove_reader(ours)
                self._running = None
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await asyncio.shield(child.wait())

    def _send_ports(self) -> None:
        if self._running is None:
            return
        try:
            self._running.orders.send(self._wanted.encode())
        except OSError as error:  # it is ending, or too busy to be of use
            if error.errno == errno.EAGAIN:
                self._running.child.kill()

    def _hear(self, orders: socket.socket) -> None:
        try:
            message = orders.recv(MAX_MESSAGE)
            if not message:
                asyncio.get_running_loop().remove_reader(orders)
                return
            report = decode_report(message)
        except BlockingIOError:
            return
        except OSError:  # the engine has ended; `_run_once` notices that
            asyncio.get_running_loop().remove_reader(orders)
            return
        except RemoteProtocolError as error:
            _log.error("the uplink's engine is terminated because of an invalid report: %s", error)
            asyncio.get_running_loop().remove_reader(orders)
            if self._running is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._running.child.kill()
            return
        if not self.report.version:
            self._problem = None
            _log.info("the uplink's engine runs", extra=fields(version=report.version, not_given_up=report.sandbox))
        self.report = report
        wanted = {str(port) for port in self._wanted.ports}
        before, self._failed = self._failed, {text: number for text, number in report.failed.items() if text in wanted}
        for text in self._failed.keys() - before.keys():
            _log.error("%s", _port_error(text, self._failed[text]))
        self._reported.set()


def _no_start(why: str) -> EngineStartError:
    return EngineStartError(
        "the engine of the user-space uplink does not run",
        why=why,
        fix="read the relay's standard error, and check for libslirp with `wgvsock doctor`",
    )


def _port_error(text: str, number: int) -> PortError:
    fix = "stop what else listens there"
    if number in {errno.EACCES, errno.EPERM}:
        fix = "publish a port from 1024, or lower net.ipv4.ip_unprivileged_port_start in the Pod's securityContext"
    return PortError(f"cannot publish {text}", why=os.strerror(number), fix=fix)
