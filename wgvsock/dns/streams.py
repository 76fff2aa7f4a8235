"""DNS over TCP (RFC 7766): messages with a two-byte length prefix, and the connections from the enclave."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from wgvsock.dns.messages import MAX_QUERY
from wgvsock.transports.sockets import send_all

PIPELINED: Final = 16
"""Queries in flight on one connection. Further queries wait in the stream (RFC 7766, section 6.2.1.1)."""

IDLE: Final = 10.0
"""Seconds to wait for the next query, and to send an answer, before the connection is closed (RFC 7766, section
6.2.3)."""

Serve = Callable[[bytes], Coroutine[Any, Any, bytes | None]]
"""Returns the answer to a message, or None if there is none."""


async def read_message(sock: socket.socket, *, limit: int = 65535) -> bytes:
    """Read the next message.

    Args:
        sock: A non-blocking stream socket.
        limit: The most bytes that the message may have.

    Returns:
        The message without its length prefix.

    Raises:
        EOFError: The stream ended.
        OSError: The stream broke, or the message exceeds `limit`.
    """
    length = int.from_bytes(await _read(sock, 2), "big")
    if length > limit:
        raise OSError(f"a message of {length} bytes")
    return await _read(sock, length)


async def send_message(sock: socket.socket, wire: bytes) -> None:
    """Send one message.

    Raises:
        OSError: The stream broke.
    """
    await send_all(sock, len(wire).to_bytes(2, "big") + wire)


class StreamClient:
    """Serves one connection from the enclave, until it is closed or idle.

    Args:
        sock: An accepted, non-blocking socket. This object takes ownership of it.
        serve: Makes the answers. Several calls may run at once and finish in any order.
        on_closed: Called with this object when the connection has ended.
    """

    def __init__(self, sock: socket.socket, serve: Serve, on_closed: Callable[[StreamClient], None]) -> None:
        self._socket = sock
        self._serve = serve
        self._on_closed = on_closed
        self._places = asyncio.Semaphore(PIPELINED)
        self._turn = asyncio.Lock()  # one answer at a time on the stream
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(self._ended)  # runs even if the task is cancelled before it starts

    def close(self) -> None:
        """Close the connection now."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as queries:
                while (wire := await self._next()) is not None:
                    await self._places.acquire()
                    queries.create_task(self._answer(wire))
        except* OSError:
            pass  # idle, broken, or not DNS

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._socket.close()
        self._on_closed(self)

    async def _next(self) -> bytes | None:
        """The next query, or None if the client sends no more but still awaits answers."""
        try:
            async with asyncio.timeout(IDLE):
                return await read_message(self._socket, limit=MAX_QUERY)
        except EOFError:
            return None

    async def _answer(self, wire: bytes) -> None:
        try:
            answer = await self._serve(wire)
            if answer is not None:
                async with self._turn, asyncio.timeout(IDLE):
                    await send_message(self._socket, answer)
        finally:
            self._places.release()


async def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (piece := await asyncio.get_running_loop().sock_recv(sock, size - len(data))):
            raise EOFError
        data += piece
    return bytes(data)
