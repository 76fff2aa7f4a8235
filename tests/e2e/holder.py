"""A load of TCP connections for a machine of the laboratory: some are held, others come and go."""

from __future__ import annotations

AT_ONCE = 100
"""Maximum of the connections that come and go. A slow machine serves fewer a second, and none waits for it until its
time is over.
"""

_SCRIPT = """
import asyncio, json, resource, time
HOST, PORT, HELD, RATE, AT_ONCE, SECONDS = {host!r}, {port}, {held}, {rate}, {at_once}, {seconds}
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

async def echo(reader, writer, text):
    writer.write(text)
    await writer.drain()
    async with asyncio.timeout(10):
        return await reader.readexactly(len(text)) == text

async def come_and_go(counts):
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(HOST, PORT)
            came_back = await echo(reader, writer, b"hello")
            counts["ok"] += came_back
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        counts["failed"] += 1
        counts["why"] = repr(error)

async def main():
    held = []
    while len(held) < HELD:
        begun = await asyncio.gather(*(asyncio.open_connection(HOST, PORT) for _ in range(min(50, HELD - len(held)))))
        held += begun
    print("held", flush=True)
    counts = {{"ok": 0, "failed": 0, "why": ""}}
    begin, tasks = time.monotonic(), set()
    said = False
    while (passed := time.monotonic() - begin) < SECONDS:
        while counts["ok"] + counts["failed"] + len(tasks) < passed * RATE and len(tasks) < AT_ONCE:
            task = asyncio.ensure_future(come_and_go(counts))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if passed > SECONDS / 2 and not said:
            said = True
            print("half", flush=True)
        await asyncio.sleep(0.01)
    if tasks:
        await asyncio.wait(tasks)
    took = time.monotonic() - begin
    alive = 0
    for reader, writer in held:
        try:
            alive += await echo(reader, writer, b"still")
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
    print(json.dumps({{"alive": alive, "rate": round(counts["ok"] / took), **counts}}), flush=True)
    for _, writer in held:
        writer.transport.abort()

asyncio.run(main())
"""


def script(host: str, port: int, *, held: int, rate: int, seconds: float) -> str:
    """Run the program.

    Args:
        host: Of an echo server.
        port: Its port.
        held: Connections that stay.
        rate: Connections per second that come and go, at most.
        seconds: Duration.
    """
    return _SCRIPT.format(host=host, port=port, held=held, rate=rate, at_once=AT_ONCE, seconds=seconds)


_SERVER = """
import asyncio, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

async def serve(reader, writer):
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def main():
    server = await asyncio.start_server(serve, port={port}, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def server(port: int) -> str:
    """An echo program for thousands of clients, for which a thread each would be too much."""
    return _SERVER.format(port=port)
