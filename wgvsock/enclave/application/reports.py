"""Serves the application's reports to the relay: over the tunnel, only to the gateway (docs/protocol/reports.md).

``GET /events`` never ends: it sends the reports after a cursor, then each new one. On the same connection the relay
acknowledges reports, one number per line. ``POST /signal`` sends the application a signal that the image permits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Final

from wgvsock.addresses import IpAddress, StreamAddress, TcpAddress
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.tunnel_port import TunnelPort
from wgvsock.machine.base import EnclaveMachine
from wgvsock.telemetry.endpoint import Answer, Inquiry, Server, Takeover, as_json
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.reports import Heartbeat, Hello, encode

HEARTBEAT: Final = 5.0
"""Seconds between heartbeats. A heartbeat is skipped while a report is being sent."""

MAX_ACKNOWLEDGEMENT: Final = 20
"""Bytes of a line from the relay: a number and its line feed."""

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
_CHUNK: Final = 4096

_log = logging.getLogger(__name__)


class ReportServer:
    """Serves one ring.

    Args:
        machine: The machine to listen on.
        interface: The tunnel's interface.
        settings: Port and permitted signals.
        ring: The reports.
        send: Sends the application a signal, and returns whether it was running.
    """

    def __init__(
        self,
        machine: EnclaveMachine,
        interface: str,
        settings: ApplicationSettings,
        ring: Ring,
        send: Callable[[int], bool],
    ) -> None:
        self._machine = machine
        self._settings = settings
        self._ring = ring
        self._send = send
        self._source = machine.random(16).hex()
        self._gateways: frozenset[str] = frozenset()
        self._port = TunnelPort(machine, interface, settings.report_port, self._accept, "reports")
        self._stream: EventStream | None = None
        self._acknowledged = asyncio.Event()
        self.was_read = False
        self._server = Server(
            {("GET", "/events"): Takeover(self._begin), ("POST", "/signal"): Inquiry(self._asked_for_signal)}
        )
        ring.on_added = self._tell

    @property
    def is_read(self) -> bool:
        """Whether a relay is reading the reports."""
        return self._stream is not None

    def listen(self, addresses: Collection[IpAddress], gateways: Collection[IpAddress]) -> None:
        """Serve these gateways on exactly these addresses. Those that are served already are not interrupted."""
        self._gateways = frozenset(map(str, gateways))
        self._port.listen(addresses)

    def close(self) -> None:
        """Stop serving."""
        self._port.close()
        self._server.close()
        if self._stream is not None:
            self._stream.close()

    async def delivered(self, seconds: float) -> None:
        """Wait until the relay has acknowledged the last report, but no longer than `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._ring.acknowledged < self._ring.last:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()

    def _accept(self, sock: socket.socket, address: StreamAddress) -> None:
        if isinstance(address, TcpAddress) and address.host.partition("%")[0] in self._gateways:
            self._server.accept(sock, address)
        else:
            sock.close()
            _log.warning("a host other than the relay asked for reports", extra=fields(address=address))

    def _begin(self, query: Mapping[str, str], sock: socket.socket) -> None:
        if self._stream is not None:  # the relay reconnected, or another one connected
            self._stream.close()
        after = query.get("after", "0")
        is_ours = query.get("source") == self._source and after.isdecimal() and len(after) < MAX_ACKNOWLEDGEMENT
        times = self._machine.processor_times()
        hello = encode(Hello(self._source, self._ring.acknowledged, self._ring.state, self._now_ms(), times))
        cursor = min(int(after), self._ring.last) if is_ours else 0
        self.was_read = True
        self._stream = EventStream(
            sock,
            self._ring,
            cursor,
            _HEAD + hello,
            beat=self._heartbeat,
            on_acknowledged=self._note,
            on_closed=self._forget,
        )
        self._stream.pump()

    def _now_ms(self) -> int:
        return self._machine.wall_clock() // 1_000_000

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self._now_ms(), self._machine.processor_times())

    def _tell(self) -> None:
        if self._stream is not None:
            self._stream.pump()

    def _note(self, number: int) -> None:
        self._ring.acknowledge(number)
        self._acknowledged.set()

    def _forget(self, stream: EventStream) -> None:
        if self._stream is stream:
            self._stream = None

    async def _asked_for_signal(self, query: Mapping[str, str]) -> Answer:
        name = query.get("name", "")
        if name not in self._settings.signals:
            allowed = ", ".join(self._settings.signals) or "none"
            return as_json({"sent": False, "why": f"the image permits {allowed}"}, HTTPStatus.FORBIDDEN)
        if not self._send(signal.Signals[f"SIG{name}"]):
            return as_json({"sent": False, "why": "the application is not running"}, HTTPStatus.CONFLICT)
        _log.info("the relay sent the application a signal", extra=fields(signal=name))
        return as_json({"sent": True})


class EventStream:
    """A connection over which a relay reads reports.

    Only one report at a time is being sent. What a slow relay does not read stays in the ring, which may drop it.

    Args:
        sock: The connection, which is closed here.
        ring: The reports.
        cursor: Number of the last report that the relay has.
        head: Bytes to send first.
        beat: Makes a heartbeat.
        on_acknowledged: Called with the number of each report that the relay acknowledges.
        on_closed: Called when the connection is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        ring: Ring,
        cursor: int,
        head: bytes,
        *,
        beat: Callable[[], Heartbeat],
        on_acknowledged: Callable[[int], None],
        on_closed: Callable[[EventStream], None],
    ) -> None:
        self._socket = sock
        self._ring = ring
        self._cursor = cursor
        self._unsent = memoryview(head)
        self._make_beat = beat
        self._on_acknowledged = on_acknowledged
        self._on_closed = on_closed
        self._said = b""
        self._waits = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)
        self._timer = self._loop.call_later(HEARTBEAT, self._beat)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._on_closed(self)

    def pump(self) -> None:
        """Send what is pending, as far as the kernel takes it."""
        if self._waits or self._socket.fileno() < 0:
            return
        try:
            while self._unsent or self._next():
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            self._waits = True
            self._loop.add_writer(self._socket, self._writable)
        except OSError:
            self.close()

    def _next(self) -> bool:
        report = self._ring.after(self._cursor)
        if report is None:
            return False
        self._cursor = report.number
        self._unsent = memoryview(encode(report))
        return True

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._waits = False
        self.pump()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT, self._beat)
        if not self._unsent:
            self._unsent = memoryview(encode(self._make_beat()))
            self.pump()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._said = (self._said + data).split(b"\n")
        numbers = [line for line in lines if line.isdigit() and len(line) < MAX_ACKNOWLEDGEMENT]
        if not data or len(numbers) < len(lines) or len(self._said) >= MAX_ACKNOWLEDGEMENT:
            self.close()
            return
        if numbers:
            self._on_acknowledged(int(numbers[-1]))
