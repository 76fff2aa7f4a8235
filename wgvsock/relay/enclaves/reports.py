"""Reads an agent's reports through the tunnel while there is a session with its enclave.

The agent keeps what the relay has not read in a ring buffer. The relay limits the rate by reading no faster. The
numbers in the next report show how much was lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlencode

from wgvsock.addresses import IpAddress
from wgvsock.errors import RemoteProtocolError, TransportError, WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import Allowance
from wgvsock.relay.enclaves.application import ApplicationRecord
from wgvsock.runtime.tasks import first_of, wait_for_event
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.telemetry.reports import MAX_REPORT, Change, Heartbeat, Hello, decode
from wgvsock.transports.sockets import send_all

RATE: Final = float(1 << 20)
"""Bytes per second to read from one enclave's reports. They take a few per cent of the relay's processor time."""

BURST: Final = float(2 << 20)
"""Bytes to read at once: an agent's ring buffer of the default size, full of short lines. See `LINE_PRICE`."""

LINE_PRICE: Final = 64
"""Bytes that each line of output counts for in addition, for its prefix and its processing."""

CONNECT_SECONDS: Final = 2.0
"""Seconds for a connection, and for the first line of an answer."""

RETRY: Final = 0.5
"""Seconds before the relay reconnects after a stream has ended."""

TRIES: Final = 3
"""Attempts before an agent counts as one without reports, which does not prevent readiness. One lost packet is not
enough."""

SLOW_RETRY: Final = 10.0
"""Seconds between further attempts with such an agent."""

SILENCE: Final = 15.0
"""Seconds of silence after which a stream is given up. The agent sends a heartbeat every 5 s."""

ACKNOWLEDGE_EVERY: Final = 1.0
"""Seconds between two acknowledgements of output. A change of state is acknowledged at once."""

_CHUNK: Final = 16_384
_MAX_HEAD: Final = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportAddress:
    """The address on which an agent serves its reports.

    Attributes:
        interface: The tunnel's interface.
        address: The enclave's address.
        port: The agent's port.
    """

    interface: str
    address: IpAddress
    port: int


class Connect(Protocol):
    """Connects to an enclave."""

    async def __call__(self, interface: str, address: IpAddress, port: int, *, seconds: float) -> socket.socket:
        """See `wgvsock.machine.base.RelayMachine.connect_in_tunnel`."""
        ...


class ReportReader:
    """Keeps one application record up to date.

    Args:
        machine: Opens connections.
        record: Takes the reports.
        name: The enclave's name, for the log.
        connect: See `wgvsock.relay.uplink.reach.Reach.connect`; by default through the tunnel's interface.
    """

    def __init__(
        self, machine: RelayMachine, record: ApplicationRecord, name: str, connect: Connect | None = None
    ) -> None:
        self._machine = machine
        self._connect_in_tunnel = connect or machine.connect_in_tunnel
        self._record = record
        self._name = name
        self._from: ReportAddress | None = None
        self._enclave = ""
        self._changed = asyncio.Event()
        self._arrived = asyncio.Event()
        self._allowance = Allowance(RATE, BURST)
        self._complained = ""
        self._tries = 0  # since there is a session with this enclave

    def begin(self, address: ReportAddress, enclave: str) -> None:
        """Start reading, because there is a session with an enclave.

        Args:
            address: Where its agent serves reports.
            enclave: Its module_id.
        """
        if (address, enclave) == (self._from, self._enclave) and not self._record.has_ended:
            return
        if enclave != self._enclave:
            self._record.begin()
            self._tries = 0
        self._record.has_ended = False  # there may be another agent with the same name; its first report tells
        self._from, self._enclave = address, enclave
        self._record.asked = self._record.asked or not address.port
        self._changed.set()

    def end(self) -> None:
        """Stop reading, because the session is gone."""
        self._from = None
        self._changed.set()

    async def arrival(self, seconds: float) -> None:
        """Wait for the next report, for at most so many seconds."""
        await wait_for_event(self._arrived, seconds)

    async def run(self, until: Callable[[], bool]) -> int:
        """Read until the application has ended for good and `until` returns True.

        Returns:
            The application's exit status.
        """
        while True:
            self._changed.clear()
            source = self._from
            if source is None or not source.port or self._record.has_ended:
                await self._changed.wait()
                continue
            pause = RETRY
            try:
                await first_of(self._read(source), self._interrupted())
            except WgvsockError as error:
                pause = self._failed(error)
            finally:
                self._record.connected = False
                self._tries += 1
                self._record.asked = self._record.asked or self._tries >= TRIES
                self._arrived.set()
            if self._record.has_ended and until():
                assert self._record.state is not None  # noqa: S101 - it has ended
                return self._record.state.exit_status or 0
            await wait_for_event(self._changed, pause)

    async def send_signal(self, name: str) -> tuple[bool, str]:
        """Ask the agent to send the application a signal.

        Args:
            name: Name of the signal, such as ``HUP``.

        Returns:
            Whether the agent sent it, and if not, why.

        Raises:
            TransportError: The agent cannot be reached.
            RemoteProtocolError: Its answer is invalid.
        """
        if self._from is None or not self._from.port:
            raise TransportError("cannot ask the agent", why="there is no tunnel to it", fix="wgvsock status shows why")
        body = await self._ask(self._from, f"POST /signal?{urlencode({'name': name})}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("sent"), bool):
            raise _refused("the answer is not one of an agent")
        return answer["sent"], str(answer.get("why", ""))[:200]

    async def _ask(self, source: ReportAddress, request: str) -> bytes:
        stream = await self._connect(source, request)
        with stream.sock:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    while len(stream.data) < _MAX_HEAD and await stream.receive(CONNECT_SECONDS):
                        pass
            except TimeoutError:
                pass
            return bytes(stream.data)

    async def _connect(self, source: ReportAddress, request: str) -> _Stream:
        """Connect, send the request, and read the head of the answer."""
        sock = await self._connect_in_tunnel(source.interface, source.address, source.port, seconds=CONNECT_SECONDS)
        stream = _Stream(sock)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await send_all(sock, f"{request} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
                await stream.read_head()
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):  # TimeoutError is one
                raise _lost(error.strerror or "no answer in time") from None
            raise
        return stream

    async def _read(self, source: ReportAddress) -> None:
        """Read one stream of reports to its end."""
        record = self._record
        query = urlencode({"source": record.source, "after": record.cursor})
        stream = await self._connect(source, f"GET /events?{query}")
        if self._complained:
            _log.info("the application's reports arrive again", extra=fields(enclave=self._name))
            self._complained = ""
        with stream.sock:
            try:
                await self._follow(stream)
            except OSError as error:
                raise _lost(error.strerror or "the connection broke") from None

    async def _follow(self, stream: _Stream) -> None:
        record, clock = self._record, self._machine.monotonic
        heard = acknowledged_at = clock()
        acknowledged = record.cursor
        while True:
            price, urgent = 0, False
            for line in stream.lines():
                report = decode(line)
                if isinstance(report, Hello | Heartbeat):
                    record.clock_offset = report.time_ms / 1000 - self._machine.wall_clock() / 1e9
                price += len(line) + LINE_PRICE * record.take(report, clock())
                urgent |= isinstance(report, Change)
                self._arrived.set()
                await asyncio.sleep(0)  # let packets be processed
            now = clock()
            if record.cursor > acknowledged and (urgent or now - acknowledged_at >= ACKNOWLEDGE_EVERY):
                async with asyncio.timeout(SILENCE):  # an agent that does not read counts as silent
                    await send_all(stream.sock, b"%d\n" % record.cursor)
                acknowledged, acknowledged_at = record.cursor, now
            if record.has_ended:
                return
            if (pause := self._allowance.spend(price, now)) > 0:
                await asyncio.sleep(pause)
            if await stream.receive(ACKNOWLEDGE_EVERY):
                heard = clock()
            elif stream.ended:
                return
            elif clock() - heard >= SILENCE:
                raise _lost(f"nothing was received for {SILENCE:g} s")

    async def _interrupted(self) -> None:
        """Return when the session is gone, or is with another enclave."""
        await self._changed.wait()

    def _failed(self, error: WgvsockError) -> float:
        """Log an error once, and return the seconds until the next attempt."""
        if error.what != self._complained:
            self._complained = error.what
            level = logging.WARNING if self._record.source else logging.INFO
            _log.log(level, "no reports from the application", extra=error_fields(error, enclave=self._name))
        return RETRY if self._record.source or self._tries < TRIES - 1 else SLOW_RETRY


class _Stream:
    """A connection that is read into a buffer of limited size."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.ended = False
        self._loop = asyncio.get_running_loop()

    async def receive(self, seconds: float) -> bool:
        """Wait for more data, for at most so many seconds.

        Returns:
            Whether data has arrived.

        Raises:
            OSError: The connection broke.
        """
        readable = asyncio.Event()
        self._loop.add_reader(self.sock, readable.set)
        try:
            await wait_for_event(readable, seconds)
        finally:
            self._loop.remove_reader(self.sock)
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return False
        self.ended = not data
        self.data += data
        return bool(data)

    async def read_head(self) -> None:
        """Read the head of the answer, and keep what follows in `data`.

        Raises:
            RemoteProtocolError: The answer is not HTTP.
            OSError: The connection broke.
        """
        while b"\r\n\r\n" not in self.data:
            if len(self.data) > _MAX_HEAD or self.ended:
                raise _refused("the answer is not HTTP")
            await self.receive(CONNECT_SECONDS)
        head, _, rest = bytes(self.data).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            raise _refused("the answer is not HTTP")
        self.data = bytearray(rest)

    def lines(self) -> list[bytes]:
        """Take the complete lines that have arrived.

        Raises:
            RemoteProtocolError: A line is too long.
        """
        *lines, rest = bytes(self.data).split(b"\n")
        if len(rest) > MAX_REPORT:
            raise _refused(f"a report is longer than {MAX_REPORT} bytes")
        self.data = bytearray(rest)
        return lines


def _lost(why: str) -> TransportError:
    return TransportError("the stream of the application's reports has ended", why=why, fix="the relay reconnects")


def _refused(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "the agent's reports cannot be read", why=why, fix='set the same "report_port" at both ends'
    )
