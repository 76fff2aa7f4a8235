"""Control sockets without a path: `request` gets one end of a socket pair, the endpoint's code runs on the other."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest

from wgvsock.addresses import UnixAddress
from wgvsock.telemetry.endpoint import Answer, Route, Routes, as_json
from wgvsock.telemetry.endpoint import Server as RouteServer
from wgvsock.telemetry.schema import SCHEMA

Server = Callable[[socket.socket], None]
"""Serves the far end of one connection, on which the request is already waiting, and closes it."""


class ControlSockets:
    """The listener at each path. All other paths refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._servers: dict[str, Server] = {}
        self._errors: dict[str, int] = {}
        client = SimpleNamespace(
            AF_UNIX=socket.AF_UNIX, SOCK_STREAM=socket.SOCK_STREAM, socket=lambda _family, _kind: _Channel(self)
        )
        monkeypatch.setattr("wgvsock.telemetry.client.socket", client)

    def serve(self, path: str, routes: Routes) -> None:
        """Let an endpoint with these routes listen there."""
        self._servers[path] = lambda far: asyncio.run(_serve(far, routes))

    def serve_status(self, path: str, status: object) -> None:
        """Let a service that never changes listen there."""
        self.serve(path, {("GET", "/status"): lambda: as_json(status)})

    def serve_bytes(self, path: str, answer: bytes) -> None:
        """Let something listen there that sends this to every client."""

        def server(far: socket.socket) -> None:
            far.recv(65536)
            far.sendall(answer)
            far.close()

        self._servers[path] = server

    def serve_with(self, path: str, server: Server) -> None:
        """Let something of the test's own listen there."""
        self._servers[path] = server

    def serve_silence(self, path: str) -> None:
        """Let something listen there that accepts, and hangs."""
        self._servers[path] = lambda _: None

    def stop(self, path: str) -> None:
        """Stop listening there."""
        del self._servers[path]

    def refuse(self, path: str, error: int) -> None:
        """Let connections there fail in this way."""
        self._errors[path] = error

    def server_at(self, path: str) -> Server:
        """Return the listener there.

        Raises:
            OSError: None, as connect(2) reports it.
        """
        if path not in self._servers:
            number = self._errors.get(path, errno.ENOENT)
            raise OSError(number, os.strerror(number))
        return self._servers[path]


class _Channel(socket.socket):
    def __init__(self, sockets: ControlSockets) -> None:
        near, self._far = socket.socketpair()
        super().__init__(fileno=near.detach())
        self._sockets = sockets
        self._server: Server

    def connect(self, address: Any, /) -> None:
        self._server = self._sockets.server_at(address)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        super().sendall(data, flags)
        self._server(self._far)

    def close(self) -> None:
        self._far.close()
        super().close()


async def _serve(far: socket.socket, routes: Routes) -> None:
    server = RouteServer(routes)
    far.setblocking(False)
    server.accept(far, UnixAddress("nowhere"))
    await turns_until(lambda: not server._connections)


async def turns_until(condition: Callable[[], object]) -> None:
    """Run the event loop until something holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never holds")


def text(body: str) -> Route:
    """A route that answers this."""
    return lambda: Answer(body)


PATH = "/run/wgvsock/relay.sock"
ROUTES: Mapping[tuple[str, str], Route] = {
    ("GET", "/live"): text("alive\n"),
    ("GET", "/ready"): lambda: as_json({"ready": False}, HTTPStatus.SERVICE_UNAVAILABLE),
    ("GET", "/status"): lambda: as_json({"schema": SCHEMA, "ready": True}),
    ("POST", "/reload"): lambda: as_json({"schema": SCHEMA}, HTTPStatus.ACCEPTED),
}
