"""The control socket: listens where ``wg`` looks for it and serves any number of clients side by side.

The clients are root's programs, but they are not trusted to be well written: a client that says nothing, stops in the
middle of a request, sends garbage, never reads its answer or goes away costs a descriptor for a while and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from wgvsock.errors import RemoteProtocolError
from wgvsock.uapi.control import DeviceControl
from wgvsock.uapi.errors import ControlSocketError, UapiError
from wgvsock.uapi.protocol import (
    DeviceChange,
    GetRequest,
    RejectedRequest,
    Request,
    RequestReader,
    format_state,
    format_status,
)

SOCKET_DIRECTORY: Final = Path("/var/run/wireguard")
"""Where ``wg`` looks for ``INTERFACE.sock``."""

MAX_CLIENTS: Final = 32
"""Clients served at once, so that they cannot use up the descriptors; the next ones wait in the backlog."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a request to arrive from its first byte on, and for its answer to be read."""

IDLE_TIMEOUT: Final = 300.0
"""Seconds that a client may say nothing between two requests: a monitor that keeps its connection asks more often."""

WATCH_INTERVAL: Final = 0.5
"""Seconds between two looks whether the socket is still in the file system."""

_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next try after the process ran out of descriptors, instead of a busy loop."""

_CHUNK: Final = 1 << 16

_log = logging.getLogger(__name__)


def socket_path(interface: str) -> Path:
    """Where the control socket of an interface is."""
    return SOCKET_DIRECTORY / f"{interface}.sock"


def open_control_socket(path: Path) -> socket.socket:
    """Listen at `path`, for root alone; a socket that nobody serves any more is replaced.

    The socket appears at its path only once it listens: ``wg`` removes one that refuses a connection, and a device
    ends when its socket is removed.

    Raises:
        ControlSocketError: Another process serves the path, or it cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")  # ``wg`` lists names that end in .sock
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _check_free(path)
        unfinished.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            listener.bind(str(unfinished))
        finally:
            os.umask(previous)
        listener.listen(MAX_CLIENTS)
        unfinished.rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise ControlSocketError(
            f"cannot open the control socket {path}",
            why=error.strerror or str(error),
            fix="stop the process that has the interface, or choose another interface name",
        ) from None
    return listener


def _check_free(path: Path) -> None:
    """Raise OSError unless there is nothing at the path, or a socket that nobody serves any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        match probe.connect_ex(str(path)):
            case errno.ENOENT:
                return
            case errno.ECONNREFUSED if stat.S_ISSOCK(path.lstat().st_mode):
                return
            case _:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class UapiServer:
    """Serves one device's control socket.

    Args:
        control: What the requests change and read.
        listener: From `open_control_socket`, or inherited; the server owns it.
        path: Where the listener is bound.
    """

    def __init__(self, control: DeviceControl, listener: socket.socket, path: Path) -> None:
        self._control = control
        self._listener = listener
        self._listener.setblocking(False)
        self._path = path
        self._inode = self._present_inode()
        self._changing = asyncio.Lock()  # set requests take effect one after another
        self._free_places = asyncio.Semaphore(MAX_CLIENTS)

    async def serve(self) -> None:
        """Serve until the socket is deleted from the file system, which is how an operator ends the device.

        Cancelled or not, it leaves no client, no listener and no file behind.
        """
        accepting = asyncio.create_task(self._accept_clients())
        try:
            while self._inode is not None and self._present_inode() == self._inode:
                await asyncio.wait({accepting}, timeout=WATCH_INTERVAL)
                if accepting.done():
                    accepting.result()
        finally:
            accepting.cancel()
            await asyncio.wait({accepting})
            self._listener.close()
            if self._present_inode() == self._inode:
                self._path.unlink(missing_ok=True)

    def _present_inode(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    async def _accept_clients(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as clients:
            while True:
                await self._free_places.acquire()
                try:
                    client, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    _log.warning("cannot accept a client of the control socket: %s", error.strerror)
                    self._free_places.release()
                    await asyncio.sleep(_ACCEPT_PAUSE)
                    continue
                clients.create_task(self._serve_client(client))

    async def _serve_client(self, client: socket.socket) -> None:
        with client:
            try:
                await self._answer_requests(client)
            except OSError as error:  # TimeoutError is one
                _log.debug("a client of the control socket went away: %s", error.strerror or "too slow")
            except RemoteProtocolError as error:
                _log.debug("%s", error)
            finally:
                self._free_places.release()

    async def _answer_requests(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = RequestReader()
        deadline = loop.time() + IDLE_TIMEOUT
        while data := await _receive(client, deadline):
            if reader.idle:
                deadline = loop.time() + REQUEST_TIMEOUT
            reader.receive(data)
            while (request := reader.next_request()) is not None:
                answer = await self._answer(request)
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await loop.sock_sendall(client, answer)
                deadline = loop.time() + REQUEST_TIMEOUT
            if reader.idle:
                deadline = loop.time() + IDLE_TIMEOUT
            await asyncio.sleep(0)  # a receive that need not wait never yields: the tunnel's packets come in between

    async def _answer(self, request: Request) -> bytes:
        match request:
            case GetRequest():
                return format_state(self._control.state()) + format_status(0)
            case RejectedRequest(error):
                return _refusal(error)
            case DeviceChange():
                try:
                    async with self._changing:
                        await self._control.apply(request)
                except UapiError as error:
                    return _refusal(error)
                return format_status(0)


async def _receive(client: socket.socket, deadline: float) -> bytes:
    async with asyncio.timeout_at(deadline):
        return await asyncio.get_running_loop().sock_recv(client, _CHUNK)


def _refusal(error: UapiError) -> bytes:
    _log.warning("refused a request on the control socket: %s", error)
    return format_status(error.errno)
