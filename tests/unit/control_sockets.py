"""Control sockets without a path: `request` gets one end of a socket pair, the endpoint's code runs on the other."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from wgvsock.addresses import UnixAddress
from wgvsock.telemetry.endpoint import Answer, Endpoint, Route, as_json

Server = Callable[[socket.socket], None]
"""Serves the far end of one connection, on which the request waits already, and closes it."""


class ControlSockets:
    """Who listens at which path; everything else refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._servers: dict[str, Server] = {}
        self._errors: dict[str, int] = {}
        client = SimpleNamespace(
            AF_UNIX=socket.AF_UNIX, SOCK_STREAM=socket.SOCK_STREAM, socket=lambda _family, _kind: _Channel(self)
        )
        monkeypatch.setattr("wgvsock.telemetry.endpoint.socket", client)

    def serve(self, path: str, routes: Mapping[tuple[str, str], Route]) -> None:
        """An endpoint with these routes listens there."""
        self._servers[path] = lambda far: asyncio.run(_serve(far, routes))

    def serve_status(self, path: str, status: object) -> None:
        """A service listens there that is always the same."""
        self.serve(path, {("GET", "/status"): lambda: as_json(status)})

    def serve_bytes(self, path: str, answer: bytes) -> None:
        """Something listens there that says this to everybody."""

        def server(far: socket.socket) -> None:
            far.recv(65536)
            far.sendall(answer)
            far.close()

        self._servers[path] = server

    def serve_silence(self, path: str) -> None:
        """Something listens there that accepts, and hangs."""
        self._servers[path] = lambda _: None

    def stop(self, path: str) -> None:
        """Nobody listens there any more."""
        del self._servers[path]

    def refuse(self, path: str, error: int) -> None:
        """Connecting there fails in this way."""
        self._errors[path] = error

    def server_at(self, path: str) -> Server:
        """Who listens there.

        Raises:
            OSError: Nobody, as connect(2) says it.
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


async def _serve(far: socket.socket, routes: Mapping[tuple[str, str], Route]) -> None:
    endpoint = Endpoint(UnixAddress("nowhere"), routes)
    far.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(endpoint._connection, far)
    await turns_until(lambda: not endpoint._connections)


async def turns_until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until something holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never holds")


def text(body: str) -> Route:
    """A route that answers this."""
    return lambda: Answer(body)
