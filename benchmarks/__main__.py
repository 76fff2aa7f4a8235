"""Run the benchmarks: ``python -m benchmarks [--quick] [--json]``, as root; see docs/performance.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import micro
from benchmarks.chart import draw
from benchmarks.measure import foreign_load, measurements, peak_memory, start_server
from benchmarks.network import UPLINK_MTU, Lane, Network, network
from benchmarks.peers import version, wireguard_go
from benchmarks.report import OURS, OURS_PLAIN, RIVAL, Results, as_json, as_table
from benchmarks.systems import INTEROPERABLE_MTU, System, UnavailableError, no_tunnel, proxies, wgvsock
from benchmarks.systems import wireguard_go as speaks_wireguard_go

QUICK_BUDGET: Final = 130.0
"""Seconds of a quick run for all rounds; starting, micro benchmarks and pauses fit into what is left of 3 minutes."""

_PAUSE: Final = 0.7
"""Seconds that a measurement takes beyond its duration: connecting, the pause in which foreign load is sampled."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 3 minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--output", type=Path, help="folder for benchmark.json and benchmark.svg")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 5, quick: 2)")
    parser.add_argument("--seconds", type=int, help="of each measurement (default: 4, quick: what fits)")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a program that speaks wireguard-go's command line; may be repeated",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="only these contestants")
    parser.add_argument("--queue-length", type=int, help="wg0's txqueuelen of our own contestants")
    arguments = parser.parse_args()
    for peer in arguments.peer:
        if "=" not in peer:
            parser.error(f"--peer wants NAME=PATH, not {peer!r}")
    return arguments


def contestants(arguments: argparse.Namespace, results: Results) -> list[System]:
    """Everything that can compete here; what cannot is noted by name."""
    queue = arguments.queue_length
    systems = [
        wgvsock(OURS, "gso", mtu=UPLINK_MTU, queue_length=queue),
        wgvsock(OURS_PLAIN, "plain", mtu=INTEROPERABLE_MTU, queue_length=queue),
    ]
    rival = wireguard_go()
    if rival is not None:
        systems.append(speaks_wireguard_go(RIVAL, rival))
        results.versions[RIVAL] = version(rival)
    else:
        results.skipped[RIVAL] = "not installed, and Debian's package could not be fetched"
    for peer in arguments.peer:
        name, _, path = peer.partition("=")
        systems.append(speaks_wireguard_go(name, Path(path).absolute()))
    found, skipped = proxies()
    systems += [*found, no_tunnel()]
    results.skipped |= skipped
    if arguments.only:
        systems = [system for system in systems if system.name in arguments.only]
        results.skipped = {name: why for name, why in results.skipped.items() if name in arguments.only}
    return systems


def bring_up(systems: list[System], built: Network, results: Results) -> dict[str, Lane]:
    """The lane of each contestant that came up; the others are taken from the list."""
    lanes: dict[str, Lane] = {}
    for system in list(systems):
        lane = built.lane(f"lane{len(lanes) + len(results.skipped)}")
        try:
            system.bring_up(lane)
        except UnavailableError as error:
            results.skipped[system.name] = str(error)
            systems.remove(system)
        else:
            lanes[system.name] = lane
    return lanes


def measure(arguments: argparse.Namespace, results: Results) -> dict[str, Any]:
    """Run all rounds; what was run."""
    systems = contestants(arguments, results)
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wgvsock-benchmark-")))
        built = stack.enter_context(network(scratch))
        server = start_server(built.external, scratch / "iperf3.log")
        stack.callback(server.wait)
        stack.callback(server.kill)
        for system in systems:
            stack.callback(system.stop)
        lanes = bring_up(systems, built, results)
        planned = len(measurements(1, quick=arguments.quick)) * len(systems) * rounds
        fitting = max(1, int(QUICK_BUDGET / max(1, planned) - _PAUSE))
        seconds = arguments.seconds or (fitting if arguments.quick else 4)
        for number in range(rounds):
            for name, take in measurements(seconds, quick=arguments.quick):
                for system in systems:
                    _progress(f"round {number + 1} of {rounds}: {name}: {system.name}")
                    results.foreign_load.append(foreign_load())
                    with _noted(results, system.name, name):
                        results.add(system.name, take(lanes[system.name], system.pids()).values)
        for system in systems:
            if system.processes:
                results.add(system.name, {"peak_memory_mib": peak_memory(system.pids())})
    return {"rounds": rounds, "seconds": seconds, "uplink_mtu": UPLINK_MTU}


@contextlib.contextmanager
def _noted(results: Results, system: str, measurement: str) -> Any:
    """A measurement that fails is a gap in the report, not the end of it."""
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
        _progress(f"{measurement}: {system}: {error}")
        results.skipped[f"{system}, {measurement}"] = str(error)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run, print, write; exit code 0 when our own contestant could be measured."""
    arguments = parse_arguments()
    if os.geteuid():
        _progress("benchmarks need root: they build network namespaces")
        return 7
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no namespace and no process is left
    started = time.monotonic()
    results = Results()
    setup = measure(arguments, results)
    results.micro = micro.run()
    setup |= {
        "machine": {"kernel": platform.release(), "processors": os.cpu_count(), "python": platform.python_version()},
        "elapsed_seconds": round(time.monotonic() - started, 1),
    }
    report = as_json(results, setup)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "benchmark.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        (arguments.output / "benchmark.svg").write_text(draw(results))
    print(
        json.dumps(report, ensure_ascii=False)
        if arguments.json
        else f"{as_table(results)}\n\n{micro.as_table(results.micro)}"
    )
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
