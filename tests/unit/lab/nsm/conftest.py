"""A server whose connections are socket pairs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from lab.nsm.server import NsmServer
from lab.nsm.signer import LabEnclave

Serve = Callable[[socket.socket], None]


class Switchboard:
    """Paths to serving functions. Connecting makes a pair and a thread that serves its far end."""

    def __init__(self) -> None:
        self.paths: dict[str, Serve] = {}
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.server = NsmServer(self.listen)
        self.listen("control", self.server.serve_control)
        self.server.create("enclave", "nsm", LabEnclave())

    def listen(self, path: str, serve: Serve) -> None:
        if path in self.paths:
            raise FileExistsError(path)
        self.paths[path] = serve

    def connect(self, path: str) -> socket.socket:
        if path not in self.paths:
            raise ConnectionRefusedError(path)
        near, far = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(self.paths[path], far))
        thread.start()
        self._threads.append(thread)
        self._sockets.append(near)
        return near

    def _serve(self, serve: Serve, far: socket.socket) -> None:
        with far, suppress(OSError):
            serve(far)

    def close(self) -> None:
        for near in self._sockets:
            near.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def switchboard() -> Iterator[Switchboard]:
    board = Switchboard()
    yield board
    board.close()
