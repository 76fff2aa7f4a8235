"""Traffic that never ends: long-lived connections, datagrams, and new connections all the time. Standard library only.

Runs by path in any machine of the laboratory::

    python3 traffic.py --echo 198.51.100.10 7 --echo 2001:db8:100::10 7 --http 198.51.100.10 80 --marker TEXT

For each ``--echo`` it keeps one TCP connection and one UDP flow. Each of their lines carries the marker and a number,
and is answered. For each ``--http`` it opens a new connection every period, for one GET. It reports on standard output,
one JSON object per line: ``cut`` (an answered connection broke), ``failed`` (a new one was refused), and ``state`` ten
times per second. The state has, for each flow, when the newest answered line was sent, and for the requests, the number
of successes, when the newest successful one began, and when the oldest pending one began.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
from typing import Any, Final

_PERIOD: Final = 0.1
"""Seconds between two lines of a flow, and between two reports."""

_REQUEST_PERIOD: Final = 0.2
_REQUEST_TIMEOUT: Final = 3.0
"""Seconds, of which a handshake with a lost first segment takes one."""

_CONNECT_TIMEOUT: Final = 2.0
_MOST_PENDING: Final = 40
"""Requests at a time: enough for those that wait for their whole timeout, twice over."""


class Reports:
    """What has to be reported."""

    def __init__(self) -> None:
        self.flows: dict[str, float] = {}
        self.requests: dict[str, dict[str, Any]] = {}

    def say(self, **what: object) -> None:
        """Report one event."""
        print(json.dumps(what), flush=True)

    async def go_on(self) -> None:
        """Report the state, for ever."""
        while True:
            pending = {
                name: {"ok": entry["ok"], "last": entry["last"], "oldest": min(entry["pending"], default=None)}
                for name, entry in self.requests.items()
            }
            self.say(event="state", time=time.time(), flows=self.flows, requests=pending)
            await asyncio.sleep(_PERIOD)


def family_of(host: str) -> tuple[socket.AddressFamily, int]:
    """Return the address family of a literal address, and its number."""
    return (socket.AF_INET6, 6) if ":" in host else (socket.AF_INET, 4)


async def keep_tcp(reports: Reports, host: str, port: int, marker: str) -> None:
    """Keep one connection, and open another when it is cut."""
    name = f"tcp{family_of(host)[1]}"
    reports.flows[name] = 0.0
    while True:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            await asyncio.sleep(2 * _PERIOD)
            continue
        sending = asyncio.create_task(_send_lines(writer, marker))
        answered = False
        try:
            while line := await reader.readline():
                reports.flows[name] = float(line.split()[1])
                answered = True
            why = "closed by the peer"
        except (OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        finally:
            sending.cancel()
            writer.transport.abort()
        if answered:
            reports.say(event="cut", time=time.time(), flow=name, why=why)
        await asyncio.sleep(_PERIOD)


async def _send_lines(writer: asyncio.StreamWriter, marker: str) -> None:
    with contextlib.suppress(OSError):  # the reader notices it too
        while True:
            writer.write(f"{marker} {time.time():.6f}\n".encode())
            await writer.drain()
            await asyncio.sleep(_PERIOD)


async def keep_udp(reports: Reports, host: str, port: int, marker: str) -> None:
    """Keep one socket. Datagrams may be lost, and the flow continues."""
    family, number = family_of(host)
    name = f"udp{number}"
    reports.flows[name] = 0.0
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        while True:
            try:
                sock.connect((host, port))
                break
            except OSError:  # no route: not yet, or not now
                await asyncio.sleep(_PERIOD)

        def receive() -> None:
            try:
                while True:
                    reports.flows[name] = max(reports.flows[name], float(sock.recv(2048).split()[1]))
            except (OSError, ValueError, IndexError):
                pass  # no more data, or a refusal: the next datagram tries again

        loop.add_reader(sock, receive)
        while True:
            with contextlib.suppress(OSError):
                sock.send(f"{marker} {time.time():.6f}\n".encode())
            await asyncio.sleep(_PERIOD)


async def open_new(reports: Reports, host: str, port: int, period: float = _REQUEST_PERIOD) -> None:
    """Open a new connection every period, in seconds."""
    name = f"http{family_of(host)[1]}"
    entry: dict[str, Any] = {"ok": 0, "last": 0.0, "pending": set()}
    reports.requests[name] = entry
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        begin = time.time()
        entry["pending"].add(begin)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                await _get(host, port)
        except (OSError, TimeoutError, ValueError, EOFError) as error:
            reports.say(event="failed", time=time.time(), begin=begin, request=name, why=_text(error))
        else:
            entry["ok"] += 1
            entry["last"] = max(entry["last"], begin)
        finally:
            entry["pending"].discard(begin)

    while True:
        if len(running) < _MOST_PENDING:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(period)


async def _get(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"answered with {answer[:40]!r}")
    finally:
        writer.close()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="traffic for the laboratory")
    for name in ("--echo", "--http"):
        parser.add_argument(name, nargs=2, action="append", default=[], metavar=("HOST", "PORT"))
    parser.add_argument("--every", type=float, default=_REQUEST_PERIOD, help="seconds between two new connections")
    parser.add_argument("--marker", default="wgvsock-traffic", help="text at the start of every line")
    return parser.parse_args(argv)


async def run(arguments: argparse.Namespace) -> None:
    """Run all flows until killed."""
    reports = Reports()
    async with asyncio.TaskGroup() as tasks:
        for host, port in arguments.echo:
            tasks.create_task(keep_tcp(reports, host, int(port), arguments.marker))
            tasks.create_task(keep_udp(reports, host, int(port), arguments.marker))
        for host, port in arguments.http:
            tasks.create_task(open_new(reports, host, int(port), arguments.every))
        tasks.create_task(reports.go_on())


def main(argv: list[str]) -> int:
    """Run until killed."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(parse_arguments(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
