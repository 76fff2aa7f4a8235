"""Connections through NAT: many at once, and many new ones per second, and datagrams of many flows.

``make bench ARGS=--connections``, as root.

The module is also the program of the two ends, in the namespaces::

    python -m benchmarks.connections serve 9000
    python -m benchmarks.connections open 192.0.2.6 9000 10000 2000
    python -m benchmarks.connections flows 192.0.2.6 9000 10000 5000
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.measure import cpu_seconds
from benchmarks.network import PUBLISHED_PORT, Lane, Namespace
from benchmarks.systems import System, expect_line

PORT: Final = PUBLISHED_PORT
HELD: Final = (200, 1_000, 5_000, 10_000)
RATE: Final = 2_000
"""New connections per second."""

FLOWS: Final = (1, 100, 1_000, 10_000)
DATAGRAMS: Final = 5_000
"""Per second, over all flows: a rate that client and server, Python programs on the same cores, can sustain."""

_DATAGRAM_SECONDS: Final = 4

PATIENCE: Final = 10.0
"""Seconds after the last connection attempt in which all have to be answered. A lost first segment costs one."""


_RESET: Final = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a connection resets it."""


class Echo(asyncio.Protocol):
    """Echoes what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.write(data)


def echo_datagrams(sock: socket.socket) -> None:
    """Send back each waiting datagram."""
    with contextlib.suppress(BlockingIOError):
        while True:
            data, address = sock.recvfrom(2048)
            sock.sendto(data, address)


class Opened(asyncio.Protocol):
    """A client connection that sends one request and is held open.

    Args:
        begun: When it was started, monotonic seconds.
        latencies: The list to which the time until its answer is added, in seconds.
    """

    def __init__(self, begun: float, latencies: list[float]) -> None:
        self._begun = begun
        self._latencies = latencies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(b"?")

    def data_received(self, _data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._latencies.append(time.monotonic() - self._begun)


async def serve(port: int) -> None:
    """Serve until the process is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "0.0.0.0", port, backlog=4096)  # noqa: S104 - a namespace
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    datagrams.bind(("0.0.0.0", port))  # noqa: S104
    loop.add_reader(datagrams, echo_datagrams, datagrams)
    print("ready", flush=True)
    await server.serve_forever()


async def open_all(host: str, port: int, count: int, rate: int) -> dict[str, Any]:
    """Open `count` connections at a fixed rate, hold all of them, and report how many were answered and how late."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    tasks = []
    started = time.monotonic()
    async for _ in _paced(count, rate):
        begun = time.monotonic()
        tasks.append(asyncio.create_task(loop.create_connection(partial(Opened, begun, latencies), host, port)))
    begun_in = time.monotonic() - started
    made = await asyncio.gather(*tasks, return_exceptions=True)
    failed = sum(isinstance(one, BaseException) for one in made)
    while len(latencies) + failed < count and time.monotonic() < started + begun_in + PATIENCE:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await _close_all([one[0] for one in made if not isinstance(one, BaseException)], rate)
    latencies.sort()
    return {
        "wanted": count,
        "answered": len(latencies),
        "failed": failed,
        "late": sum(latency >= 1.0 for latency in latencies),
        "begun_per_second": round(count / begun_in),
        "median_ms": round(1e3 * latencies[len(latencies) // 2], 2) if latencies else None,
        "p99_ms": round(1e3 * latencies[len(latencies) * 99 // 100], 2) if latencies else None,
    }


async def _paced(count: int, rate: int) -> AsyncIterator[int]:
    """Count up at a fixed rate per second. What is late is made up for, with a turn of the loop after each 16."""
    started = time.monotonic()
    for number in range(count):
        early = started + number / rate - time.monotonic()
        if early > 0 or not number % 16:
            await asyncio.sleep(max(0.0, early))
        yield number


async def _close_all(transports: Sequence[asyncio.WriteTransport], rate: int) -> None:
    """Reset all connections, at the same rate at which they were opened.

    The next measurement has to find the machine as this one did. A connection that is closed keeps its port for a
    minute (TIME_WAIT), and ten thousand of them make each new connection's search for a port take 1.5 ms. Thousands of
    resets at once would overflow the queues on their path, and where a reset is lost, the server keeps its connection.
    """
    async for number in _paced(len(transports), rate):
        transports[number].abort()
    await asyncio.sleep(0)


def send_from_all(host: str, port: int, count: int, rate: int, total: int) -> dict[str, Any]:
    """Send datagrams in turn from this many sockets, each a separate flow, and count the replies.

    Args:
        host: The server's address.
        port: The server's port.
        count: Number of sockets.
        rate: Datagrams per second, over all sockets.
        total: Number of datagrams.
    """
    poll = select.epoll()
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(count)]
    by_number = {}
    for one in socks:
        one.connect((host, port))
        poll.register(one, select.EPOLLIN)
        by_number[one.fileno()] = one
    sent = answered = 0
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < total / rate + 1.0 and answered < total:
        while sent < min(now * rate, total):
            with contextlib.suppress(BlockingIOError):
                socks[sent % count].send(b"?" * 64)
            sent += 1
        for number, _ in poll.poll(0.001, 256):
            with contextlib.suppress(BlockingIOError):
                while True:
                    by_number[number].recv(128)
                    answered += 1
    for one in socks:
        one.close()
    return {"flows": count, "sent": sent, "answered": answered}


def measure(system: System, lane: Lane) -> list[dict[str, Any]]:
    """Measure each number of connections through one contestant in succession, then inwards, then flows."""
    outwards, inwards = (lane.enclave, lane.external_address), (lane.external, lane.relay_address)

    def measured(way: tuple[Namespace, str], verb: str, count: int, rate: int) -> tuple[dict[str, Any], float]:
        before = cpu_seconds(system.pids())
        client, address = way
        command = (sys.executable, "-m", "benchmarks.connections", verb, address, str(PORT), str(count), str(rate))
        done = subprocess.run(client.command(*command), capture_output=True, text=True, check=True)
        return json.loads(done.stdout), 1e6 * (cpu_seconds(system.pids()) - before)

    def held(name: str, way: tuple[Namespace, str]) -> list[dict[str, Any]]:
        rows = []
        for count in HELD:
            row, used = measured(way, "open", count, RATE)
            rows.append({"system": name, **row, "cpu_us": round(used / count, 1)})
        return rows

    results = held(system.name, outwards)
    with server(lane.enclave):
        results += held(f"{system.name}, inwards", inwards)
    for count in FLOWS:
        row, used = measured(outwards, "flows", count, DATAGRAMS)
        results.append({"system": system.name, **row, "cpu_us": round(used / row["sent"], 1)})
    return results


@contextlib.contextmanager
def server(place: Namespace) -> Any:
    """Run the server in a namespace."""
    process = place.start((sys.executable, "-m", "benchmarks.connections", "serve", str(PORT)))
    try:
        expect_line(process, "ready")
        yield
    finally:
        process.kill()
        process.wait()


def as_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the report for people: one line for each contestant and number."""
    return "\n".join(
        f"{row['system']}: {row['flows']} UDP flows: {row['answered']} of {row['sent']} datagrams came back, "
        f"{row['cpu_us']} µs of processor time each"
        if "flows" in row
        else f"{row['system']}: {row['wanted']} at {row['begun_per_second']}/s: {row['answered']} answered, "
        f"{row['failed']} failed, {row['late']} later than 1 s, median {row['median_ms']} ms, p99 {row['p99_ms']} ms, "
        f"{row['cpu_us']} µs of processor time each"
        for row in results
    )


def main(words: Sequence[str]) -> None:
    """Run one of the two ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if words[0] == "serve":
        asyncio.run(serve(int(words[1])))
    else:
        host, port, count, rate = words[1], *map(int, words[2:])
        if words[0] == "flows":
            print(json.dumps(send_from_all(host, port, count, rate, _DATAGRAM_SECONDS * rate)))
        else:
            print(json.dumps(asyncio.run(open_all(host, port, count, rate))))


if __name__ == "__main__":
    main(sys.argv[1:])
