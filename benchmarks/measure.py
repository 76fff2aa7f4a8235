"""Single measurements: rates by iperf3, round trips by ping, processor time from the scheduler's own count.

Tick-based processor times are off by 20 % over two seconds. ``/proc/PID/task/*/schedstat`` counts nanoseconds.
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.network import Lane, Namespace
from lab.process import processor_seconds

FIXED_RATE: Final = 20_000
"""Packets per second of the small-packet measurements: a rate that every contestant can carry on two cores."""

PING_INTERVAL: Final = 0.01
LOADED_PING_INTERVAL: Final = 0.05
_ROUND_TRIP: Final = re.compile(r"time=([0-9.]+) ms")
_GRACE: Final = 20.0
"""Seconds beyond its duration after which a measurement counts as failed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one measurement of one contestant: values by metric."""

    values: dict[str, float]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of all threads of these processes, in seconds."""
    return sum(map(processor_seconds, pids))


def peak_memory(pids: Iterable[int]) -> float:
    """Return the largest resident set of any of these processes, in MiB."""
    peaks = [0.0]
    for pid in pids:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        if found:
            peaks.append(int(found[1]) / 1024)
    return max(peaks)


def foreign_load(seconds: float = 0.2) -> float:
    """Return the share of the machine that others use while the benchmark is idle, 0 to 1, including stolen time."""
    before = _processor_ticks()
    time.sleep(seconds)
    after = _processor_ticks()
    busy, total = (b - a for a, b in zip(before, after, strict=True))
    return busy / total if total else 0.0


def tcp(lane: Lane, pids: list[int], *, streams: int, reverse: bool, seconds: int) -> Measurement:
    """Measure bulk TCP between enclave and external host, with a concurrent ping.

    Args:
        lane: The contestant's part of the network.
        pids: Processes whose processor time counts.
        streams: Number of parallel connections.
        reverse: Whether data flows from the external host into the enclave.
        seconds: Duration.
    """
    name = f"tcp_{'down' if reverse else 'up'}_{streams}"
    options = ["-P", str(streams), *(["-R"] if reverse else [])]
    with _ping(lane, LOADED_PING_INTERVAL, seconds) as ping:
        before = cpu_seconds(pids)
        result = _iperf(lane, seconds, *options)
        used = cpu_seconds(pids) - before
        round_trips = _round_trips(ping)
    gigabits = result["end"]["sum_received"]["bytes"] * 8 / 1e9
    values = {f"{name}_gbps": result["end"]["sum_received"]["bits_per_second"] / 1e9}
    if pids and gigabits:
        values[f"{name}_cpu_ms_per_gbit"] = used * 1e3 / gigabits
    if round_trips:
        values[f"{name}_ping_ms"] = statistics.median(round_trips)
    return Measurement(values)


def udp(lane: Lane, pids: list[int], *, size: int, flood: bool, seconds: int) -> Measurement:
    """Measure datagrams of one size from the enclave outwards, at the fixed rate or as fast as possible."""
    name = f"udp_{size}_{'flood' if flood else 'fixed'}"
    rate = "0" if flood else str(FIXED_RATE * size * 8)
    before = cpu_seconds(pids)
    result = _iperf(lane, seconds, "-u", "-l", str(size), "-b", rate)
    used = cpu_seconds(pids) - before
    sent = result["end"]["sum"]["packets"]
    delivered = sent - result["end"]["sum"]["lost_packets"]
    values = {}
    if flood:
        values[f"{name}_kpps"] = delivered / result["end"]["sum"]["seconds"] / 1e3
    else:
        values[f"{name}_loss_percent"] = 100 * (sent - delivered) / max(1, sent)
        if pids and delivered:
            values[f"{name}_cpu_us_per_packet"] = used * 1e6 / delivered
    return Measurement(values)


def idle_ping(lane: Lane, seconds: int) -> Measurement:
    """Measure round trips on an idle tunnel."""
    with _ping(lane, PING_INTERVAL, seconds) as ping:
        ping.wait(timeout=seconds + _GRACE)
        round_trips = _round_trips(ping)
    return Measurement({"idle_ping_ms": statistics.median(round_trips)} if round_trips else {})


def measurements(seconds: int, *, quick: bool) -> list[tuple[str, Callable[[Lane, list[int]], Measurement]]]:
    """Return the measurements of a round, by name. A quick run skips those that add nothing new."""

    def bulk(streams: int, *, reverse: bool) -> Callable[[Lane, list[int]], Measurement]:
        return lambda lane, pids: tcp(lane, pids, streams=streams, reverse=reverse, seconds=seconds)

    def small(size: int, *, flood: bool) -> Callable[[Lane, list[int]], Measurement]:
        return lambda lane, pids: udp(lane, pids, size=size, flood=flood, seconds=seconds)

    chosen = [
        ("TCP up", bulk(1, reverse=False)),
        ("TCP down", bulk(1, reverse=True)),
        ("UDP 64 B", small(64, flood=False)),
        ("UDP 1300 B", small(1300, flood=False)),
        ("UDP 64 B flood", small(64, flood=True)),
        ("idle ping", lambda lane, _: idle_ping(lane, seconds)),
    ]
    if not quick:
        chosen += [
            ("TCP up, 4 streams", bulk(4, reverse=False)),
            ("TCP down, 4 streams", bulk(4, reverse=True)),
            ("UDP 1300 B flood", small(1300, flood=True)),
        ]
    return chosen


def start_server(external: Namespace, log: Path) -> subprocess.Popen[str]:
    """The iperf3 server on the external host. It serves one client at a time, because one measurement runs at a time.

    It reports every second of every measurement to a file, because a pipe that nobody reads would block it.
    """
    return external.start(("iperf3", "--server"), log=log)


def _iperf(lane: Lane, seconds: int, *options: str) -> Any:
    command = ("iperf3", "--client", lane.external_address, "--time", str(seconds), "--json", *options)
    done = subprocess.run(
        lane.enclave.command(*command), capture_output=True, text=True, check=False, timeout=seconds + _GRACE
    )
    result = json.loads(done.stdout or "{}")
    if "error" in result or "end" not in result:
        raise RuntimeError(f"iperf3: {result.get('error', done.stderr.strip())}")
    return result


def _ping(lane: Lane, interval: float, seconds: int) -> subprocess.Popen[str]:
    count = max(1, int(seconds / interval))
    return lane.enclave.start(("ping", "-n", "-i", str(interval), "-c", str(count), "-W", "1", lane.external_address))


def _round_trips(ping: subprocess.Popen[str]) -> list[float]:
    """Stop ping, and return the round-trip time of each answered echo request in milliseconds."""
    ping.send_signal(signal.SIGINT)  # so that it flushes its output
    output, _ = ping.communicate(timeout=_GRACE)
    return [float(text) for text in _ROUND_TRIP.findall(output)]


def _processor_ticks() -> tuple[int, int]:
    """Return busy and total ticks of all processors since boot. Stolen time counts as busy."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    total = sum(ticks)
    return total - ticks[3] - ticks[4], total
