"""Look-ups through the Relay's forwarder and direct ones: ``python -m benchmarks.names [--json]``, as root.

Both use the same tunnel and the same name server, in turns within one run, so they differ only in the forwarder. The
laboratory's tap and name server share the processors: any loss of the direct look-ups is theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import socket
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

RATES: Final = (500, 1000, 2000, 3000, 4000, 6000)
"""Queries per second."""

LOSS: Final = 0.001
"""The loss up to which a rate counts as carried: one datagram in a thousand."""

_PAUSE: Final = 2.0
"""Seconds to wait for late answers."""

_WWW: Final = b"\3www\3lab\4test\0" + struct.pack("!HH", 1, 1)


def query(number: int) -> bytes:
    """Return one query with the given ID."""
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + _WWW


def ask_one_by_one(server: str, count: int) -> list[float]:
    """Return the time of each of a series of sequential queries, in seconds."""
    took: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PAUSE)
        sock.connect((server, 53))
        for _ in range(count):
            number = random.getrandbits(16)
            begin = time.perf_counter()
            sock.send(query(number))
            while int.from_bytes(sock.recv(4096)[:2], "big") != number:
                pass
            took.append(time.perf_counter() - begin)
    return took


def ask_at_a_rate(server: str, rate: int, seconds: float) -> tuple[int, int]:
    """Return how many queries were sent, and how many were answered."""
    sent = answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.connect((server, 53))
        begin = time.perf_counter()
        total, end = int(rate * seconds), begin + seconds + _PAUSE
        while answered < total and (now := time.perf_counter()) < end:
            while sent < total and sent <= (now - begin) * rate:
                sock.send(query(sent & 0xFFFF))
                sent += 1
            if select.select([sock], [], [], 1 / rate if sent < total else 0.1)[0]:
                try:
                    while sock.recv(4096):
                        answered += 1
                except BlockingIOError:
                    pass
    return sent, answered


def client(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in the enclave: both ways in turns, and each rate once."""
    servers = {"direct": arguments.direct, "forwarder": arguments.forwarder}
    took: dict[str, list[float]] = {way: [] for way in servers}
    for _ in range(arguments.rounds):
        for way, server in servers.items():
            took[way] += ask_one_by_one(server, 200)
    loss: dict[str, dict[int, float]] = {way: {} for way in servers}
    for rate in RATES:
        for way, server in servers.items():
            sent, answered = ask_at_a_rate(server, rate, arguments.seconds)
            loss[way][rate] = 1 - answered / sent
    return {
        way: {
            "p50_ms": round(statistics.median(took[way]) * 1e3, 3),
            "p99_ms": round(statistics.quantiles(took[way], n=100)[-1] * 1e3, 3),
            "loss_percent": {str(rate): round(100 * share, 2) for rate, share in loss[way].items()},
            "carries_per_second": max((rate for rate, share in loss[way].items() if share <= LOSS), default=0),
        }
        for way in servers
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a laboratory whose Relay forwards DNS, and measure in its enclave."""
    from lab.ladder import Ladder
    from lab.netns.backend import NetnsBackend
    from lab.topology import Node

    ladder = Ladder(NetnsBackend(f"{os.getpid():x}"))
    topology = ladder.topology
    try:
        ladder.backend.up()
        config = ladder.backend.relay_config() | {"log_level": "info"}
        config["dns"] = {"forward": True, "servers": [topology.external4], "search": [topology.zone]}
        if arguments.policy:
            rules = [{"name": f"*.{topology.zone}"}, {"network": f"{topology.external4}/32", "protocol": "any"}]
            config["egress"] = {"default": "deny", "allow": rules}
        ladder.start_enclave()
        ladder.start_relay(config)
        ladder.wait_ready()
        argv = [sys.executable, str(Path(__file__)), "--direct", topology.external4, "--forwarder", topology.relay4]
        argv += ["--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds)]
        done = ladder.backend.run(Node.ENCLAVE, argv, deadline=ladder.backend.deadline(300)).check()
        report: dict[str, Any] = json.loads(done.stdout)
        report["queries"] = ladder.enclave_status()["dns"]["queries"]
    finally:
        ladder.backend.down()
    report["added_p50_ms"] = round(report["forwarder"]["p50_ms"] - report["direct"]["p50_ms"], 3)
    return report


def as_table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    ways = ("direct", "forwarder")
    rows: list[tuple[str, ...]] = [("", *ways)]
    rows += [(key, *(f"{report[way][key]:g}" for way in ways)) for key in ("p50_ms", "p99_ms", "carries_per_second")]
    for rate in RATES:
        rows.append((f"loss at {rate}/s, %", *(f"{report[way]['loss_percent'][str(rate)]:g}" for way in ways)))
    return "\n".join(f"{name:22}" + "".join(f"{value:>12}" for value in values) for name, *values in rows)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.names", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--rounds", type=int, default=5, help="turns of 200 queries each way")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each rate")
    parser.add_argument(
        "--policy",
        action="store_true",
        help="with a policy of names: each answer is read, and pinned before it is sent",
    )
    for way in ("--direct", "--forwarder"):
        parser.add_argument(way, help=argparse.SUPPRESS)  # in the enclave
    arguments = parser.parse_args()
    if arguments.direct:
        print(json.dumps(client(arguments)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no namespace or process is left behind
    report = measure(arguments)
    print(json.dumps(report) if arguments.json else f"{as_table(report)}\nadded p50: {report['added_p50_ms']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
