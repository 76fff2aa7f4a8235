"""Run the benchmarks: ``python -m benchmarks [--quick] [--json]``, as root. See docs/performance.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import connections, growth, line_chart, micro
from benchmarks.chart import draw
from benchmarks.limit.contestants import limits
from benchmarks.measure import foreign_load, measurements, peak_memory, start_server
from benchmarks.network import UPLINK_MTU, Lane, Network, network, unwind_on_sigterm
from benchmarks.peers import version, wireguard_go
from benchmarks.proxies import proxies
from benchmarks.report import LIMIT, OURS, OURS_COMPILED, OURS_PLAIN, OURS_USERSPACE, RIVAL, Results, as_json, as_table
from benchmarks.systems import INTEROPERABLE_MTU, System, UnavailableError, no_tunnel, userspace, wgvsock
from benchmarks.systems import wireguard_go as speaks_wireguard_go
from wgvsock.cli.ending import run_command
from wgvsock.cli.output import CommandParser, put, put_text
from wgvsock.errors import ConfigurationError
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.transports.vsock import MAX_SEND

QUICK_BUDGET: Final = 130.0
"""Seconds of a quick run for all rounds. Start-up, micro benchmarks and pauses fit into the rest of 3 minutes."""

_QUICK: Final = frozenset({OURS, OURS_COMPILED, OURS_PLAIN, RIVAL, LIMIT, "no tunnel"})
"""Contestants of a quick run, in addition to those of --peer: with all of them, rounds would be too short."""

BUSY_POLLS: Final = (200, 20_000)
"""Microseconds of busy polling: between the packets of one exchange, and between those of the idle ping."""

JUMBO_MTU: Final = 9001
"""Bytes: the MTU of an EC2 instance's interface inside its VPC."""

_PAUSE: Final = 0.7
"""Seconds that a measurement takes beyond its duration: for connecting, and for the pause that samples foreign load."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default that of this process."""
    parser = CommandParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--growth", action="store_true", help="measure what grows, without contestants or root")
    parser.add_argument(
        "--connections", action="store_true", help="measure many connections through NAT, and new ones per second"
    )
    parser.add_argument("--quick", action="store_true", help="finish within 3 minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--output", type=Path, help="folder for benchmark.json and benchmark.svg")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 5, quick: 2)")
    parser.add_argument("--seconds", type=int, help="duration of each measurement (default: 4, quick: as long as fits)")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a program with wireguard-go's command line; may be repeated",
    )
    parser.add_argument(
        "--compiled", type=Path, metavar="FOLDER", help="a compiled build of wgvsock as one more contestant"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="only these contestants")
    parser.add_argument(
        "--variants", action="store_true", help="also run wgvsock with vsock's limit per send, and at MTU 9001"
    )
    parser.add_argument("--queue-length", type=int, help="txqueuelen of wg0 for wgvsock's own contestants")
    arguments = parser.parse_args(argv)
    for peer in arguments.peer:
        if "=" not in peer:
            parser.error(f"--peer wants NAME=PATH, not {peer!r}")
    return arguments


def contestants(arguments: argparse.Namespace, results: Results) -> list[System]:
    """Return all contestants that can run here, and record the others by name."""
    queue = arguments.queue_length
    systems = [
        wgvsock(OURS, "gso", mtu=UPLINK_MTU, queue_length=queue),
        wgvsock(OURS_PLAIN, "plain", mtu=INTEROPERABLE_MTU, queue_length=queue),
        userspace(OURS_USERSPACE),
    ]
    if arguments.compiled:
        compiled = wgvsock(OURS_COMPILED, "gso", mtu=UPLINK_MTU, queue_length=queue, build=arguments.compiled)
        systems.insert(1, compiled)
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
    systems += [*limits(), *found, no_tunnel()]
    results.skipped |= skipped
    if arguments.variants or arguments.only:
        systems += [*variants(queue), userspace(f"{OURS_USERSPACE}, gso", "gso")]
    peers = {peer.partition("=")[0] for peer in arguments.peer}
    names = {system.name for system in systems} | results.skipped.keys()
    if unknown := sorted(set(arguments.only or ()) - names):
        raise ConfigurationError(
            f"no contestant is called {', '.join(map(repr, unknown))}",
            why="--only takes the whole name of one",
            fix=f"choose from {', '.join(map(repr, sorted(names)))}",
        )
    wanted = arguments.only or (_QUICK | peers if arguments.quick else {system.name for system in systems})
    results.skipped = {name: why for name, why in results.skipped.items() if name in wanted or not arguments.only}
    return [system for system in systems if system.name in wanted]


def variants(queue: int | None) -> list[System]:
    """Return wgvsock with vsock's limit per send, with sleeping or busy polling, and on an uplink with jumbo frames."""
    capped = ("--max-send", str(MAX_SEND))
    return [
        wgvsock(f"{OURS}, {MAX_SEND} B a send", "gso", mtu=UPLINK_MTU, options=capped, queue_length=queue),
        *(
            wgvsock(f"{OURS}, busy {us} us", "gso", mtu=UPLINK_MTU, options=("--busy-poll-us", str(us)))
            for us in BUSY_POLLS
        ),
        wgvsock(f"{OURS}, MTU {JUMBO_MTU}", "gso", mtu=JUMBO_MTU, queue_length=queue),
    ]


def bring_up(systems: list[System], built: Network, results: Results) -> dict[str, Lane]:
    """Return the lane of each contestant that came up, and remove the others from the list."""
    lanes: dict[str, Lane] = {}
    for system in list(systems):
        lane = built.lane(f"lane{len(lanes) + len(results.skipped)}", system.mtu)
        try:
            system.bring_up(lane)
        except UnavailableError as error:
            results.skipped[system.name] = str(error)
            systems.remove(system)
        else:
            lanes[system.name] = lane
    return lanes


def measure(arguments: argparse.Namespace, results: Results) -> dict[str, Any]:
    """Run all rounds, and return their parameters."""
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
                    if system.tcp_only and not name.startswith("TCP"):
                        continue
                    _progress(f"round {number + 1} of {rounds}: {name}: {system.name}")
                    results.foreign_load.append(foreign_load())
                    with _noted(results, system.name, name):
                        values = take(lanes[system.name], system.pids()).values
                        results.add(system.name, system.own(values))
        for system in systems:
            if system.pids():
                results.add(system.name, {"peak_memory_mib": peak_memory(system.pids())})
    return {"rounds": rounds, "seconds": seconds, "uplink_mtu": UPLINK_MTU}


@contextlib.contextmanager
def _noted(results: Results, system: str, measurement: str) -> Any:
    """Take one measurement. A failure leaves a gap in the report, and the run continues."""
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as error:
        _progress(f"{measurement}: {system}: {error}")
        results.skipped[f"{system}, {measurement}"] = str(error)


def _progress(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads standard error: the measurement continues
        print(text, file=sys.stderr, flush=True)


def measure_connections(arguments: argparse.Namespace) -> int:
    """Measure connections through wgvsock, through the rival, and without a tunnel."""
    results = Results()
    names = {OURS, OURS_COMPILED, RIVAL, "no tunnel"}
    systems = [system for system in contestants(arguments, results) if system.name in names]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wgvsock-benchmark-")))
        built = stack.enter_context(network(scratch))
        stack.enter_context(connections.server(built.external))
        for system in systems:
            stack.callback(system.stop)
        lanes = bring_up(systems, built, results)
        rows = [row for system in systems for row in connections.measure(system, lanes[system.name])]
    if arguments.json:
        put(json.dumps({"schema": SCHEMA, "kind": "connections", "rows": rows}))
    else:
        put_text(f"{connections.as_table(rows)}\n")
    return 0


def measure_growth(arguments: argparse.Namespace) -> int:
    """Measure growth, without contestants."""
    results = growth.run()
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "growth.json").write_text(json.dumps(growth.as_json(results), indent=1) + "\n")
        (arguments.output / "growth.svg").write_text(line_chart.draw(results["series"]))
    if arguments.json:
        put(json.dumps(growth.as_json(results), ensure_ascii=False))
    else:
        put_text(f"{growth.as_table(results)}\n")
    return 0


def main() -> int:
    """Run, print and write the report. The exit code is 0 if wgvsock's own contestant could be measured."""
    arguments = parse_arguments()
    if arguments.growth:
        return measure_growth(arguments)
    if os.geteuid():
        _progress("benchmarks need root: they build network namespaces")
        return 7
    unwind_on_sigterm()
    if arguments.connections:
        return measure_connections(arguments)
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
    if arguments.json:
        put(json.dumps(report, ensure_ascii=False))
    else:
        put_text(f"{as_table(results)}\n\n{micro.as_table(results.micro)}\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
