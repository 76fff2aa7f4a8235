"""A minimal HTTP/1.1 server for probes, metrics and the control socket.

It serves one request per connection from a table of routes, without request bodies, keep-alive or TLS. Anyone who can
reach the port can open connections and stay silent, which must not keep a probe out. So a new connection never waits:
if there are too many, the oldest unfinished one is closed, of the same client first. Connections whose answer is being
made are closed last.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import parse_qsl

from wgvsock.addresses import StreamAddress, TcpAddress
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import listen_stream

MAX_REQUEST: Final = 4096
"""Bytes of request line and headers. A kubelet's probe sends about 200."""

REQUEST_TIMEOUT: Final = 5.0
"""Seconds for a whole request and its answer, no matter how slowly they arrive."""

MAX_CONNECTIONS: Final = 64
"""Unfinished connections. Each takes one of the 1024 descriptors that a process has by default."""

MAX_PER_CLIENT: Final = 16
"""Unfinished connections of one client. A kubelet has at most three probes in flight, and Prometheus one request."""

BACKLOG: Final = 1024
"""Connections that may wait for accept. Each turn of the event loop accepts one, about 4000 a second, so that strangers
delay neither packets nor an earlier probe. A burst must not fill the queue: the kernel would drop the first packet of a
probe, whose retransmission after a second comes too late for a kubelet."""

MAX_FIELDS: Final = 8
"""Fields of a query. Ours have at most three."""

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; version=0.0.4"
_VERSION: Final = re.compile(r"HTTP/1\.[0-9]")
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    body: str | bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    allow: str = ""
    """With status 405: the allowed methods."""


_BUG: Final = Answer("internal error: this is a bug\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)

Route = Callable[[], Answer]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A route whose answer takes time or depends on the query. The connection's time limit applies to it.

    Attributes:
        answer: Called with the fields of the query, such as ``{"enclave": "wallet"}``. It is cancelled if the
            connection is closed before.
    """

    answer: Callable[[Mapping[str, str]], Coroutine[Any, Any, Answer]]


@dataclass(frozen=True, slots=True)
class Takeover:
    """A route that takes over the connection. The limits on number, size and time then no longer apply.

    Attributes:
        take: Called with the fields of the query and the socket, which it then owns.
    """

    take: Callable[[Mapping[str, str], socket.socket], None]


Routes = Mapping[tuple[str, str], Route | Inquiry | Takeover]
"""Routes by method and path, such as ``("GET", "/ready")``. A route for ``GET`` also answers ``HEAD``."""


_Reply = Answer | Coroutine[Any, Any, Answer] | Callable[[socket.socket], None]
"""The result of a route: an answer, one that takes time, or a function that takes over the connection."""


def as_json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """An answer with one JSON value."""
    return Answer(json.dumps(value) + "\n", _JSON, status)


class Server:
    """Serves routes on connections that others accept.

    Args:
        routes: The routes to serve.
    """

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._connections: dict[_Connection, str] = {}  # client by connection, the oldest first

    def close(self) -> None:
        """Close every connection. Idempotent."""
        for connection in list(self._connections):
            connection.close()

    def accept(self, sock: socket.socket, address: StreamAddress) -> None:
        """Serve an accepted connection from an address."""
        client = client_of(address)
        self._make_room(client)
        connection = _Connection(sock, self._routes, self._forget)
        self._connections[connection] = client
        connection.start()

    def _make_room(self, client: str) -> None:
        own = [connection for connection, owner in self._connections.items() if client and owner == client]
        if len(own) >= MAX_PER_CLIENT:
            _first_to_go(own).close()
        elif len(self._connections) >= MAX_CONNECTIONS:
            _first_to_go(list(self._connections)).close()

    def _forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)


class Endpoint:
    """Serves routes on one listening socket.

    Args:
        address: Where to listen, ``unix:`` (mode 0600) or ``tcp:``. ``tcp:[::]:PORT`` means every address, also IPv4.
        routes: The routes to serve.
    """

    def __init__(self, address: StreamAddress, routes: Routes) -> None:
        self._address = address
        self._server = Server(routes)
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Start serving.

        Raises:
            TransportError: The address cannot be bound.
        """
        self._listener = Listener(
            listen_stream(self._address, backlog=BACKLOG, both_families=True), None, self._server.accept
        )

    def close(self) -> None:
        """Stop, and close every connection. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._server.close()


def _first_to_go(connections: Sequence[_Connection]) -> _Connection:
    """The oldest connection whose answer is not being made, or the oldest of all."""
    return next((connection for connection in connections if not connection.is_asked), connections[0])


def client_of(address: StreamAddress) -> str:
    """What counts as one client: an IPv4 address, an IPv6 /64 network, or "" for any client of a Unix socket.

    A machine has at least a whole /64, and may use another of its addresses for each connection.
    """
    if not isinstance(address, TcpAddress):
        return ""
    host = ip_address(address.host.partition("%")[0])
    return str(host) if host.version == 4 else str(ip_network((host, 64), strict=False))


class _Connection:
    """Reads one request head, writes one answer, and closes.

    It uses the socket directly: asyncio's transports first read two turns of the loop after accept.
    """

    def __init__(self, sock: socket.socket, routes: Routes, on_closed: Callable[[_Connection], None]) -> None:
        self._socket = sock
        self._routes = routes
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(REQUEST_TIMEOUT, self.close)
        self._head = bytearray()
        self._unsent = memoryview(b"")
        self._inquiry: asyncio.Task[None] | None = None

    @property
    def is_asked(self) -> bool:
        """Whether an answer is being made. The code that makes it also limits how many there are."""
        return self._inquiry is not None

    def start(self) -> None:
        """Wait for the request. A probe's has usually arrived already."""
        self._loop.add_reader(self._socket, self._read)
        self._read()

    def close(self) -> None:
        """Close the connection, answered or not. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._timer.cancel()
        if self._inquiry is not None:
            self._inquiry.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._on_closed(self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_REQUEST + 1 - len(self._head))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._head += data
        if not data:
            self.close()
        elif b"\r\n\r\n" in self._head[:MAX_REQUEST]:
            self._answer()
        elif len(self._head) > MAX_REQUEST:
            self._send(Answer("the request is too long\n", status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def _answer(self) -> None:
        method, route = find_route(bytes(self._head), self._routes)
        with_body = method != "HEAD"
        try:
            answer = route()
        except BaseException:
            self._send(_BUG)
            raise
        if isinstance(answer, Answer):
            self._send(answer, with_body=with_body)
        elif callable(answer):
            self._hand_over(answer)
        else:
            self._loop.remove_reader(self._socket)
            self._inquiry = self._loop.create_task(self._answer_later(answer, with_body=with_body))

    def _hand_over(self, take: Callable[[socket.socket], None]) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._on_closed(self)
        taken = socket.socket(fileno=self._socket.detach())
        taken.setblocking(False)
        take(taken)

    async def _answer_later(self, inquiry: Coroutine[Any, Any, Answer], *, with_body: bool) -> None:
        try:
            answer = await inquiry
        except Exception as bug:  # noqa: BLE001 - reported at once, not when the task is collected
            self._loop.call_exception_handler({"message": "an inquiry failed", "exception": bug})
            answer, with_body = _BUG, True
        self._inquiry = None
        self._send(answer, with_body=with_body)

    def _send(self, answer: Answer, *, with_body: bool = True) -> None:
        self._loop.remove_reader(self._socket)
        self._unsent = memoryview(encode(answer, with_body=with_body))
        self._write()

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._unsent:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._finish()

    def _finish(self) -> None:
        # Closing a socket with unread bytes, such as an unexpected body, resets the connection, and the answer may be
        # lost with it (RFC 9112, section 9.6).
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.recv(1 << 16)
        self.close()


def find_route(head: bytes, routes: Routes) -> tuple[str, Callable[[], _Reply]]:
    """The method in a request's head, and the function that answers it.

    Scheme and host of the absolute form are ignored (RFC 9112, section 3.2.2), and so is the query if a route has none.
    """
    line = head.lstrip(b"\r\n").split(b"\r\n", 1)[0].decode("latin-1")
    words = line.split(" ")
    if len(words) != 3 or not words[1] or not _VERSION.fullmatch(words[2]):
        return "", lambda: Answer("this is not an HTTP/1 request\n", status=HTTPStatus.BAD_REQUEST)
    method, target, _ = words
    target = _ABSOLUTE.sub("", target, count=1) if target[0] != "/" else target
    path, _, query = target.partition("#")[0].partition("?")
    path = path or "/"
    route = routes.get(("GET" if method == "HEAD" else method, path))
    if isinstance(route, Inquiry | Takeover):
        return method, _inquire(route, query)
    if route is not None:
        return method, route
    methods = [known for known, served in routes if served == path]
    if methods:
        allow = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
        text = "this method is not allowed here\n"
        return method, lambda: Answer(text, status=HTTPStatus.METHOD_NOT_ALLOWED, allow=allow)
    return method, lambda: Answer("there is nothing here\n", status=HTTPStatus.NOT_FOUND)


def _inquire(route: Inquiry | Takeover, query: str) -> Callable[[], _Reply]:
    try:
        fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        return lambda: Answer("the query has too many fields\n", status=HTTPStatus.BAD_REQUEST)
    if isinstance(route, Takeover):
        return lambda: functools.partial(route.take, fields)
    return functools.partial(route.answer, fields)


def encode(answer: Answer, *, with_body: bool = True) -> bytes:
    """An answer's bytes. Content-Length is the body's even if the body is omitted (RFC 9110, section 8.6)."""
    body = answer.body if isinstance(answer.body, bytes) else answer.body.encode()
    allow = f"Allow: {answer.allow}\r\n" if answer.allow else ""
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
