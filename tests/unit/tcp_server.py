"""A TCP server in a test's own event loop, of whose connections none outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]  # noqa: TID251 (a server's)

_TURNS: Final = 5
"""Turns of the loop in which a connection that was accepted at the last moment is made, and its end is heard."""


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """Serve on a port of 127.0.0.1, and yield it. Each connection ends with its handler, or with the server."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: TID251 (a server's)
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: TID251 (a server's)
        writers.append(writer)
        tasks.append(asyncio.get_running_loop().create_task(handle(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for _ in range(_TURNS):  # a closed server trips over the connections that it has accepted and not yet made
            await asyncio.sleep(0)
        server.close()
        for _ in range(_TURNS):
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
