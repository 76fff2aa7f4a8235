"""The control socket: listens where ``wg`` looks for it, and serves many clients concurrently.

The clients are programs of root, but they are not trusted to be well written. A client that sends nothing, stops in the
middle of a request, sends garbage, never reads its answer or disappears costs a descriptor for a while, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from wgvsock.errors import RemoteProtocolError
from wgvsock.uapi.errors import ControlSocketError, UapiError
from wgvsock.uapi.protocol import (
    DeviceChange,
    DeviceState,
    GetRequest,
    Request,
    RequestReader,
    format_state,
    format_status,
)
from wgvsock.uapi.turns import Turns

SOCKET_DIRECTORY: Final = Path("/var/run/wireguard")
"""Where ``wg`` looks for ``INTERFACE.sock``."""

MAX_CLIENTS: Final = 32
"""Clients served at once, so that they cannot use up the descriptors. Another client replaces the one that has been
silent longest."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a request to arrive after its first byte, and seconds for its answer to be read."""

IDLE_TIMEOUT: Final = 300.0
"""Seconds that a client may be silent between two requests. A monitor that keeps its connection polls more often."""

WATCH_INTERVAL: Final = 0.5
"""Seconds between two checks that the socket is still in the file system."""

_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next attempt after the process ran out of descriptors, instead of a busy loop."""

_CHUNK: Final = 1 << 16

_log = logging.getLogger(__name__)


def socket_path(interface: str) -> Path:
    """Path of an interface's control socket."""
    return SOCKET_DIRECTORY / f"{interface}.sock"


def open_control_socket(path: Path) -> socket.socket:
    """Listen at `path`, accessible only to root. A stale socket that nobody serves is replaced.

    The socket appears at its path only once it listens: ``wg`` removes a socket that refuses connections, and a device
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
            fix="stop the process that owns the interface, or choose another interface name",
        ) from None
    return listener


def _check_free(path: Path) -> None:
    """Raise OSError unless there is nothing at the path, or a stale socket that nobody serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        match probe.connect_ex(str(path)):
            case errno.ENOENT:
                return
            case errno.ECONNREFUSED if stat.S_ISSOCK(path.lstat().st_mode):
                return
            case _:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@dataclass(eq=False)
class _Client:
    """One connection."""

    sock: socket.socket
    heard_at: float
    """When it last sent something, or connected."""
    answered: bool = False
    """Whether it has received an answer."""
    changing: bool = False
    """Whether one of its changes is being carried out."""
    task: asyncio.Task[None] | None = None


class Control(Protocol):
    """What requests change and read. See `wgvsock.uapi.control.DeviceControl` and `wgvsock.uapi.window.DeviceView`."""

    async def state(self) -> DeviceState:
        """Everything that a get request returns. Do not call it while `apply` is running."""
        ...

    async def apply(self, change: DeviceChange) -> None:
        """Carry out a set request.

        Raises:
            UapiError: It is refused, and nothing has changed.
        """
        ...


class UapiServer:
    """Serves one device's control socket.

    Args:
        control: What the requests change and read.
        listener: From `open_control_socket`, or inherited. The server owns it.
        path: Path that the listener is bound to.
    """

    def __init__(self, control: Control, listener: socket.socket, path: Path) -> None:
        self._control = control
        self._listener = listener
        self._listener.setblocking(False)
        self._path = path
        self._inode = self._present_inode()
        self._device_taken = asyncio.Lock()  # a request takes many iterations, and no other must see half of it
        self._clients: set[_Client] = set()
        self._one_is_done = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the socket is deleted from the file system, which is how an operator ends the device.

        Even if cancelled, it leaves no client, no listener and no file behind.
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
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    _log.warning("cannot accept a client of the control socket: %s", error.strerror)
                    await asyncio.sleep(_ACCEPT_PAUSE)
                    continue
                with contextlib.ExitStack() as owned:
                    owned.enter_context(sock)
                    await self._make_room()
                    owned.pop_all()
                client = _Client(sock, loop.time())
                self._clients.add(client)
                client.task = tasks.create_task(self._serve_client(client))
                await asyncio.sleep(0)  # lets it start before it can be cancelled, so that it closes its socket

    async def _make_room(self) -> None:
        """Disconnect the client that has been silent longest, if there are `MAX_CLIENTS`.

        Clients that have received an answer are spared as long as there are others. Clients whose change is being
        carried out are always spared. If there are only such clients, one of them will finish soon.
        """
        while len(self._clients) >= MAX_CLIENTS:
            self._one_is_done.clear()
            idle = [client for client in self._clients if not client.changing]
            if idle:
                victim = min(idle, key=lambda client: (client.answered, client.heard_at))
                _log.debug("too many clients at the control socket: a silent one is disconnected")
                assert victim.task is not None  # noqa: S101 - set before anything is awaited
                victim.task.cancel()
            await self._one_is_done.wait()

    async def _serve_client(self, client: _Client) -> None:
        with client.sock:
            try:
                await self._answer_requests(client)
            except OSError as error:  # TimeoutError is one
                _log.debug("a client of the control socket is gone: %s", error.strerror or "too slow")
            except RemoteProtocolError as error:
                _log.debug("%s", error)
            finally:
                self._clients.discard(client)
                self._one_is_done.set()

    async def _answer_requests(self, client: _Client) -> None:
        loop = asyncio.get_running_loop()
        reader = RequestReader()
        deadline = loop.time() + IDLE_TIMEOUT
        while data := await _receive(client.sock, deadline):
            client.heard_at = loop.time()
            if reader.idle:
                deadline = loop.time() + REQUEST_TIMEOUT
            reader.receive(data)
            while (request := reader.next_request()) is not None:
                await self._answer(client, request)
                client.answered = True
                deadline = loop.time() + REQUEST_TIMEOUT
            if reader.idle:
                deadline = loop.time() + IDLE_TIMEOUT
            await asyncio.sleep(0)  # a receive that need not wait never yields, and the tunnel's packets need a turn

    async def _answer(self, client: _Client, request: Request) -> None:
        if isinstance(request, GetRequest):
            await self._describe(client)
            return
        answer = await self._change(client, request) if isinstance(request, DeviceChange) else _refusal(request.error)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await asyncio.get_running_loop().sock_sendall(client.sock, answer)

    async def _change(self, client: _Client, change: DeviceChange) -> bytes:
        client.changing = True
        try:
            async with self._device_taken:
                await self._control.apply(change)
        except UapiError as error:
            return _refusal(error)
        finally:
            client.changing = False
            self._one_is_done.set()
        return format_status(0)

    async def _describe(self, client: _Client) -> None:
        """Send the device's state in chunks, so that the client reads one while the next is written."""
        loop = asyncio.get_running_loop()
        async with self._device_taken:
            state = await self._control.state()
        turns = Turns(loop.time)
        chunk = bytearray()
        async with asyncio.timeout(REQUEST_TIMEOUT):
            for part in format_state(state):
                chunk += part
                if len(chunk) >= _CHUNK:
                    await loop.sock_sendall(client.sock, chunk)
                    chunk = bytearray()
                await turns.pause()
            await loop.sock_sendall(client.sock, chunk + format_status(0))


async def _receive(client: socket.socket, deadline: float) -> bytes:
    async with asyncio.timeout_at(deadline):
        return await asyncio.get_running_loop().sock_recv(client, _CHUNK)


def _refusal(error: UapiError) -> bytes:
    _log.warning("refused a request on the control socket: %s", error)
    return format_status(error.errno)
