"""A tiny HTTP/1.1 server for probes, metrics and the control socket, and its client for the ``wgvsock`` command.

One request a connection. It serves a table of routes and nothing else: no bodies in, no keep-alive, no TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import StreamAddress, UnixAddress
from wgvsock.errors import TransportError
from wgvsock.transports.sockets import listen_stream

MAX_REQUEST: Final = 4096
"""Bytes of request line and headers; a kubelet's probe sends about 200."""

REQUEST_TIMEOUT: Final = 5.0
"""Seconds for a whole request, so that an idle client holds no descriptor for long."""

MAX_CONNECTIONS: Final = 32

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; version=0.0.4"


class NotRunningError(TransportError):
    """Nobody listens at a control socket."""

    code = "WGV-E087"
    exit_code = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers."""

    body: str
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK


Route = Callable[[], Answer]


def as_json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """An answer that is one JSON object."""
    return Answer(json.dumps(value) + "\n", _JSON, status)


class Endpoint:
    """Serves routes on one listening socket.

    Args:
        address: Where to listen, ``unix:`` (mode 0600) or ``tcp:``.
        routes: Answers by method and path, such as ``("GET", "/ready")``.
    """

    def __init__(self, address: StreamAddress, routes: Mapping[tuple[str, str], Route]) -> None:
        self._address = address
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            TransportError: The address cannot be bound.
        """
        listener = listen_stream(self._address)
        loop = asyncio.get_running_loop()
        if listener.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._connection, sock=listener)
        else:
            self._server = await loop.create_server(self._connection, sock=listener)

    def close(self) -> None:
        """Stop, and close every connection; idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if isinstance(self._address, UnixAddress):
                Path(self._address.path).unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.abort()

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self._routes, self._connections)


class _Connection(asyncio.Protocol):
    """Reads one request head, writes one answer, closes."""

    def __init__(self, routes: Mapping[tuple[str, str], Route], connections: set[_Connection]) -> None:
        self._routes = routes
        self._connections = connections
        self._head = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own contract for stream servers
        self._transport = transport
        self._connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, transport.abort)
        if len(self._connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._timer.cancel()
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if len(self._head) > MAX_REQUEST:
            self._answer(Answer("the request is too long\n", status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif b"\r\n\r\n" in self._head:
            self._answer(self._route())

    def abort(self) -> None:
        """Close without an answer."""
        self._transport.abort()

    def _route(self) -> Answer:
        words = bytes(self._head).split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return Answer("this is no HTTP/1 request\n", status=HTTPStatus.BAD_REQUEST)
        method, path, _ = words
        route = self._routes.get((method, path))
        if route is not None:
            return route()
        if any(known == path for _, known in self._routes):
            return Answer("this method is not allowed here\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        return Answer("there is nothing here\n", status=HTTPStatus.NOT_FOUND)

    def _answer(self, answer: Answer) -> None:
        body = answer.body.encode()
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()
        self._head.clear()


def request(path: str, method: str, target: str, *, timeout: float = REQUEST_TIMEOUT) -> tuple[int, Any]:
    """Ask the control socket at a path; blocking. The HTTP status, and the JSON object or text of the answer.

    Raises:
        NotRunningError: Nobody listens there.
        TransportError: It cannot be reached, or the answer is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout)
        try:
            channel.connect(path)
            channel.sendall(f"{method} {target} HTTP/1.1\r\nHost: wgvsock\r\n\r\n".encode())
            answer = b"".join(iter(lambda: channel.recv(65536), b""))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(
                f"no service runs at {path}", why=str(error.strerror), fix="start it, or name its configuration with -c"
            ) from error
        except OSError as error:
            raise TransportError(
                f"cannot ask the service at {path}",
                why=error.strerror or str(error),
                fix="ask as the user that it runs as, or as root; its log says whether it hangs",
            ) from error
    head, found, body = answer.partition(b"\r\n\r\n")
    with contextlib.suppress(ValueError, IndexError):
        if found:
            status = int(head.split(b" ", 2)[1])
            return status, json.loads(body) if _JSON.encode() in head else body.decode()
    raise TransportError(f"{path} gave no answer", why="it is no control socket of wgvsock", fix="check the path")
