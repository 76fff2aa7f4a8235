"""Asks the relay's name servers in order, the next one as well when one is silent. The first answer counts.

Each query has a random source port and a random identifier (RFC 5452). An answer has to match both, the question and
the server's address. A slow server delays only the queries that were sent to it, by a second. After that, it is asked
last for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.dns.messages import UNANSWERED, Query, answers, rcode_of, with_number
from wgvsock.dns.sockets import DnsSockets
from wgvsock.dns.streams import read_message, send_message
from wgvsock.errors import TransportError

PATIENCE: Final = 5.0
"""Seconds for a query over all servers. After that, the C library asks again (``timeout`` in resolv.conf(5))."""

STEP: Final = 1.0
"""Seconds until the next server is asked as well. The first may still answer: a recursive resolver sometimes takes
longer."""

SUSPICION: Final = 10.0
"""Seconds during which a silent server is asked last."""

MAX_SERVERS: Final = 3
"""Servers to ask, as many as the C library uses (MAXNS in resolv.h)."""

MAX_WRONG: Final = 64
"""Wrong datagrams after which a query to a server is given up, because somebody may be guessing identifiers."""

_LARGEST: Final = 65535

_Report = Callable[[IpAddress, bytes | None], None]


class NoAnswerError(Exception):
    """No name server answered.

    Attributes:
        unreachable: Whether there is no server at all, or none could be reached.
    """

    def __init__(self, *, unreachable: bool) -> None:
        super().__init__()
        self.unreachable = unreachable


class Upstreams:
    """Asks name servers.

    Args:
        sockets: Opens sockets to them.
        random: Returns as many random bytes as asked for.

    Attributes:
        servers: The servers to ask, the preferred one first. It may be set at any time and applies to later queries.
        counts: ``timeouts``, ``wrong`` (datagrams that do not answer the query) and ``errors`` (the server was
            unreachable, or the exchange broke off).
    """

    def __init__(self, sockets: DnsSockets, random: Callable[[int], bytes]) -> None:
        self.servers: tuple[IpAddress, ...] = ()
        self.counts: Counter[str] = Counter()
        self._sockets = sockets
        self._random = random
        self._suspected: dict[IpAddress, float] = {}  # until when, on the event loop's clock

    @property
    def silent(self) -> tuple[IpAddress, ...]:
        """The servers that are asked last because they recently did not answer in time."""
        now = asyncio.get_running_loop().time()
        return tuple(server for server in self.servers if self._suspected.get(server, now) > now)

    async def ask(self, query: Query, *, over_tcp: bool) -> bytes:
        """Send a query to the name servers.

        Args:
            query: The query.
            over_tcp: Whether to use TCP, as the client did. A truncated answer is passed on, and the client asks again
                over TCP.

        Returns:
            The answer in wire format, unchanged except for the identifier, which is that of the query.

        Raises:
            NoAnswerError: No server answered.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[tuple[IpAddress, bytes | None]] = asyncio.Queue()
        number = self._random(2)
        message = with_number(query.wire, number)
        waiting: list[IpAddress] = []
        late: set[IpAddress] = set()
        last: bytes | None = None
        with contextlib.ExitStack() as attempts:

            def ask_next(server: IpAddress) -> None:
                attempt = (_Stream if over_tcp else _Datagram)(self, query, number, server, report)
                waiting.append(server)
                attempt.start(message)
                attempts.callback(attempt.close)

            def report(server: IpAddress, answer: bytes | None) -> None:
                news.put_nowait((server, answer))

            left = self._in_order()
            end = loop.time() + PATIENCE
            while left or waiting:
                if left:
                    ask_next(left.pop(0))
                try:
                    async with asyncio.timeout_at(min(end, loop.time() + STEP) if left else end):
                        server, answer = await news.get()
                except TimeoutError:
                    self._suspect(set(waiting) - late)
                    late.update(waiting)
                    if loop.time() >= end:
                        break
                    continue
                waiting.remove(server)
                if answer is None:
                    continue
                self._suspected.pop(server, None)
                last = with_number(answer, query.wire[:2])
                if rcode_of(answer) not in UNANSWERED:
                    return last
        if last is None:
            raise NoAnswerError(unreachable=not late)
        return last

    def open_socket(self, server: IpAddress) -> socket.socket:
        """See `DnsSockets.to_server`."""
        return self._sockets.to_server(server)

    async def open_stream(self, server: IpAddress, deadline: float) -> socket.socket:
        """See `DnsSockets.stream_to_server`."""
        return await self._sockets.stream_to_server(server, deadline=deadline)

    def _in_order(self) -> list[IpAddress]:
        return sorted(self.servers[:MAX_SERVERS], key=self.silent.__contains__)

    def _suspect(self, servers: set[IpAddress]) -> None:
        until = asyncio.get_running_loop().time() + SUSPICION
        self.counts["timeouts"] += len(servers)
        self._suspected |= dict.fromkeys(servers, until)
        self._suspected = {server: at for server, at in self._suspected.items() if server in self.servers}


class _Attempt:
    """One query to one server. It reports once: the answer, or None if it failed.

    Args:
        owner: Opens sockets and keeps the counts.
        query: The query.
        number: The identifier that it is sent with, two bytes.
        server: The server to ask.
        report: Called with the result.
    """

    def __init__(self, owner: Upstreams, query: Query, number: bytes, server: IpAddress, report: _Report) -> None:
        self._owner = owner
        self._query = query
        self._number = number
        self._server = server
        self._report = report
        self._loop = asyncio.get_running_loop()

    def _is_answer(self, wire: bytes) -> bool:
        if answers(self._query, self._number, wire):
            return True
        self._owner.counts["wrong"] += 1
        return False


class _Datagram(_Attempt):
    """Over UDP."""

    _socket: socket.socket | None = None
    _wrong = 0

    def start(self, message: bytes) -> None:
        try:
            self._socket = sock = self._owner.open_socket(self._server)
            sock.send(message)
        except OSError:
            self._fail()
            return
        self._loop.add_reader(sock, self._heard, sock)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _heard(self, sock: socket.socket) -> None:
        try:
            wire = sock.recv(_LARGEST)
        except BlockingIOError:  # the kernel dropped a datagram with a wrong checksum
            return
        except OSError:  # no program listens there
            self._fail()
            return
        if self._is_answer(wire):
            self._tell(wire)
            return
        self._wrong += 1
        if self._wrong >= MAX_WRONG:
            self._fail()

    def _fail(self) -> None:
        self._owner.counts["errors"] += 1
        self._tell(None)

    def _tell(self, answer: bytes | None) -> None:
        self.close()
        self._report(self._server, answer)


class _Stream(_Attempt):
    """Over TCP."""

    _task: asyncio.Task[None]

    def start(self, message: bytes) -> None:
        self._task = asyncio.ensure_future(self._run(message))

    def close(self) -> None:
        self._task.cancel()

    async def _run(self, message: bytes) -> None:
        answer: bytes | None = None
        try:
            answer = await self._exchange(message)
        except (OSError, TransportError, EOFError):
            self._owner.counts["errors"] += 1
        self._report(self._server, answer)

    async def _exchange(self, message: bytes) -> bytes | None:
        with await self._owner.open_stream(self._server, self._loop.time() + PATIENCE) as sock:
            await send_message(sock, message)
            wire = await read_message(sock)
        return wire if self._is_answer(wire) else None
