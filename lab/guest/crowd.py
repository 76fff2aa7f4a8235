"""Many clients at once: HTTP requests at a fixed rate, and the outcome of each. Standard library only.

    python3 crowd.py http://192.0.2.1:8444/path --rate 200 --seconds 5

Prints one JSON object: how many were sent, the seconds that it took, and how many had each status, where 0 means no
answer. Requests do not wait for each other, but at most `MOST` are open at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

MOST: Final = 400
"""Maximum connections at a time, below the 1024 descriptors of a process."""

PATIENCE: Final = 20.0
"""Time limit of one request, in seconds."""


async def ask(host: str, port: int, target: str) -> int:
    """Return the status of one answer, read to its end."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {target} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("ascii"))
                return int((await reader.read()).split(b" ", 2)[1])
            finally:
                writer.close()
    return 0


async def crowd(url: str, rate: float, seconds: float) -> dict[str, object]:
    """Send requests at a rate, in requests per second, for some seconds."""
    split = urlsplit(url)
    target = split._replace(scheme="", netloc="").geturl()
    statuses: Counter[str] = Counter()
    under_way: set[asyncio.Task[int]] = set()

    def note(task: asyncio.Task[int]) -> None:
        under_way.discard(task)
        statuses[str(task.result())] += 1

    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        if len(under_way) < MOST:
            task = asyncio.create_task(ask(split.hostname or "", split.port or 80, target))
            under_way.add(task)
            task.add_done_callback(note)
    while under_way:
        await asyncio.wait(under_way)
    await asyncio.sleep(0)  # the last one is recorded
    return {"asked": statuses.total(), "seconds": time.monotonic() - begin, "statuses": dict(statuses)}


def main(argv: list[str]) -> None:
    """Send the requests, and print the outcome."""
    parser = argparse.ArgumentParser(prog="crowd.py")
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, required=True, metavar="N", help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args(argv)
    sys.stdout.write(json.dumps(asyncio.run(crowd(arguments.url, arguments.rate, arguments.seconds))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
