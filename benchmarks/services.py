"""The cost of the two services apart from packets: ``python -m benchmarks.services [--json]``, as root.

In the laboratory of network namespaces: the time from exec to READY by stage, the processor time of an idle tunnel, and
how long packets wait while the Relay attests its enclave again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import cpu_seconds, foreign_load
from benchmarks.network import unwind_on_sigterm
from lab.backend import Process
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.process import processor_shares
from lab.topology import Node
from wgvsock.telemetry.schema import SCHEMA

LOOK_EVERY: Final = 0.005
"""Seconds between two readiness checks. Each takes the Relay a millisecond."""

PATIENCE: Final = 20.0
"""Seconds until a start counts as failed."""

PING_EVERY: Final = 0.01
"""Seconds between two pings while the Relay attests."""

ATTESTATIONS: Final = 5
"""New attestations in one turn of pings."""

_LINE: Final = re.compile(r'^time=(\S+) level=\S+ at=\S+ msg=(?:"([^"]*)"|(\S+))(.*)$', re.MULTILINE)
_REPLY: Final = re.compile(r"^\[(\d+\.\d+)\] .* time=", re.MULTILINE)


def milestones(who: str, log: str, begun: float) -> dict[str, float]:
    """Return the log of a starting service: seconds after exec by message, the first of each.

    Args:
        who: Its name.
        log: Its output.
        begun: Unix time of its start, in seconds.
    """
    seen: dict[str, float] = {}
    for moment, quoted, bare, rest in _LINE.findall(log):
        state = re.search(r" new=(\S+)", rest)
        name = f"{who}: {quoted or bare}{f' {state[1]}' if state else ''}"
        seen.setdefault(name, round(datetime.fromisoformat(moment).timestamp() - begun, 3))
    return seen


def longest_gap(said: str) -> float | None:
    """Return the longest time between two replies in the output of ``ping -D``, in seconds."""
    moments = [float(moment) for moment in _REPLY.findall(said)]
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=None)


class Bench:
    """Measures a laboratory that is up.

    Args:
        lab: A laboratory whose services are not running.
    """

    def __init__(self, lab: Ladder) -> None:
        self._lab = lab

    def start(self) -> tuple[float, dict[str, float]]:
        """Start both services and wait until the Relay is ready. Returns the seconds, and the log until then."""
        begun, clock = time.time(), time.monotonic()
        self._lab.start_enclave()
        self._lab.start_relay()
        while self._lab.look_ready() is None:
            if time.monotonic() > clock + PATIENCE:
                raise RuntimeError("the Relay did not become ready in time")
            time.sleep(LOOK_EVERY)
        took = time.monotonic() - clock
        said = [milestones(process.name, process.output(), begun) for process in self._services()]
        return took, dict(sorted((said[0] | said[1]).items(), key=lambda one: one[1]))

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time of each service since its start, in seconds."""
        return {process.name: cpu_seconds([process.pid]) for process in self._services()}

    def idle(self, seconds: float) -> dict[str, float]:
        """Return the share of a core that each service takes with an idle tunnel, in percent."""
        shares = processor_shares({process.name: process.pid for process in self._services()}, seconds)
        return {name: 100 * share for name, share in shares.items()}

    def gap(self, seconds: float, *, attesting: bool) -> float:
        """Return the longest time between two replies at a hundred pings per second, in milliseconds."""
        backend = self._lab.backend
        count = str(int(seconds / PING_EVERY))
        argv = ["ping", "-D", "-n", "-i", str(PING_EVERY), "-c", count, self._lab.topology.external4]
        ping = backend.spawn(Node.ENCLAVE, argv, name="ping")
        for _ in range(ATTESTATIONS if attesting else 0):
            time.sleep(seconds / (ATTESTATIONS + 1))
            self._lab.attest_again()
        while ping.poll() is None:
            time.sleep(LOOK_EVERY)
        if (gap := longest_gap(ping.output())) is None:
            raise RuntimeError(f"no ping was answered: {ping.output()[-500:]}")
        return 1e3 * gap

    def _services(self) -> list[Process]:
        found = [process for process in (self._lab.enclave, self._lab.relay) if process is not None]
        if len(found) != 2:
            raise RuntimeError("a service is not running")
        return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a laboratory, and measure in it."""
    lab = Ladder(NetnsBackend(f"{os.getpid():x}b"))
    bench = Bench(lab)
    starts: list[float] = []
    used: dict[str, list[float]] = {}
    stages: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {"quiet": [], "attesting": []}
    foreign = []
    try:
        lab.backend.up()
        lab.backend.tap.record(on=False)
        for number in range(arguments.rounds + 1):
            foreign.append(foreign_load())
            took, seen = bench.start()
            if number:  # the first start compiles
                starts.append(took)
                for name, seconds in bench.processor_seconds().items():
                    used.setdefault(name, []).append(seconds)
                for name, at in seen.items():
                    stages.setdefault(name, []).append(at)
            if number < arguments.rounds:
                lab.clear()
        lab.wait_application()
        for _ in range(arguments.turns):
            for way, found in gaps.items():
                found.append(bench.gap(arguments.seconds, attesting=way == "attesting"))
        idle = bench.idle(arguments.idle)
        foreign.append(foreign_load())
    finally:
        lab.backend.down()
    common = {name for name, values in stages.items() if 2 * len(values) > len(starts)}
    return {
        "schema": SCHEMA,
        "kind": "services",
        "ready_seconds": _spread(starts),
        "start_processor_seconds": _medians(used),
        "stages_seconds": {name: median for name, median in _medians(stages).items() if name in common},
        "idle_percent": {name: round(share, 3) for name, share in idle.items()},
        "longest_gap_ms": {way: _spread(found) for way, found in gaps.items()},
        "foreign_load": round(statistics.median(foreign), 2),
    }


def _medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def as_table(report: Mapping[str, Any]) -> str:
    """Return the report for people."""

    def spread(values: Mapping[str, float], unit: str) -> str:
        return f"{values['median']:g} {unit} ({values['min']:g} to {values['max']:g})"

    used = ", ".join(f"{name} {seconds:g} s" for name, seconds in report["start_processor_seconds"].items())
    idle = ", ".join(f"{name} {share:.2f} %" for name, share in report["idle_percent"].items())
    lines = [f"exec to READY: {spread(report['ready_seconds'], 's')}; of processor time: {used}"]
    lines += [f"  {at:6.3f} s  {name}" for name, at in sorted(report["stages_seconds"].items(), key=lambda one: one[1])]
    lines += [f"longest gap between pings, {way}: {spread(v, 'ms')}" for way, v in report["longest_gap_ms"].items()]
    lines += [f"idle: {idle} of a core", f"foreign load: {report['foreign_load']}"]
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.services", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--rounds", type=int, default=9, help="number of starts")
    parser.add_argument("--turns", type=int, default=3, help="turns of pings, each idle and during attestation")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each turn")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of an idle tunnel")
    arguments = parser.parse_args()
    unwind_on_sigterm()
    cache = tempfile.mkdtemp(prefix="wgvsock-services-")
    try:
        # As installed: from byte code, independent of the checkout's location and this environment.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(cache))
        report = measure(arguments)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    print(json.dumps(report) if arguments.json else as_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
