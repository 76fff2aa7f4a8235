"""What application output costs the traffic: ``python -m benchmarks.output [--lab pair] [--json]``, as root.

A bulk transfer out of the enclave runs alone and during a burst of output, in turns within one run. The processor time
is that of both services, from the scheduler's own count. The application shares the same processors. A third kind of
turn shows the cost of its writing alone: there, a process other than the agent reads the output.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.measure import foreign_load
from benchmarks.network import unwind_on_sigterm
from lab.backend import Process
from lab.backends import backend_class
from lab.guest.command import alone
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.topology import Node
from wgvsock.addresses import WIREGUARD_PORT

WAYS: Final = ("quiet", "burst", "elsewhere")
"""No output, a burst that the agent reads, and a burst that `cat` reads."""

_BURST_ENDS: Final = "stream=stdout written"


@dataclass
class Turns:
    """The results of the turns of one kind.

    Attributes:
        megabytes_per_second: Rate of the transfer.
        relay: Processor seconds of the relay, from the start of the transfer to the end of transfer and burst.
        agent: Processor seconds of the agent over the same time.
    """

    megabytes_per_second: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    agent: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Return the values for the report."""
        return {name: round(statistics.median(values), 3) for name, values in vars(self).items()}


class Bench:
    """A laboratory whose application writes bursts.

    Args:
        lab: A laboratory that is up, with no service running.
        arguments: The parsed command line.
    """

    def __init__(self, lab: Ladder, arguments: argparse.Namespace) -> None:
        self._lab = lab
        self._transfer = arguments.transfer << 20
        self._burst = arguments.burst * 1_000_000
        self._loud = [*alone("chatter"), "--bytes", str(self._burst)]

    def start(self) -> None:
        """Start both services."""
        enclave = self._lab.backend.enclave_config() | {"application": {"forward_output": True}}
        self._lab.start_enclave(enclave, application=self._loud)
        relay = self._lab.backend.relay_config()
        if isinstance(self._lab.backend, NetnsBackend):
            # Bypasses the tap, which would be the slowest part of the path.
            relay["enclave"]["address"] = str(self._lab.backend.enclave_address(WIREGUARD_PORT))
        self._lab.start_relay(relay)
        self._lab.wait_ready()

    def turn(self, way: str) -> tuple[float, float, float]:
        """Run one transfer. Returns megabytes per second, and processor seconds of relay and agent."""
        elsewhere = self._start_elsewhere() if way == "elsewhere" else None
        services = ((Node.POD, self._lab.relay), (Node.ENCLAVE, self._lab.enclave))
        before = [self._processor_seconds(*service) for service in services]
        said = self._bursts_said()
        try:
            if way == "burst":
                _started(self._lab.enclave).signal(signal.SIGHUP)  # the agent forwards it
            elif elsewhere is not None:
                elsewhere.signal(signal.SIGHUP)
            seconds = self._lab.carry(Node.ENCLAVE, size=self._transfer)
            if way == "burst":
                self._lab.backend.deadline(60).poll(lambda: self._bursts_said() > said, "the end of the burst")
        finally:
            if elsewhere is not None:
                elsewhere.kill()
        relay, agent = (
            self._processor_seconds(*service) - then for service, then in zip(services, before, strict=True)
        )
        return self._transfer / 1e6 / seconds, relay, agent

    def _start_elsewhere(self) -> Process:
        process = self._lab.backend.spawn(Node.ENCLAVE, [*self._loud, "--elsewhere"], name="elsewhere")
        process.wait_for_line("waiting", self._lab.backend.deadline(20))
        return process

    def _bursts_said(self) -> int:
        return _started(self._lab.relay).output().count(_BURST_ENDS)

    def _processor_seconds(self, node: Node, process: Process | None) -> float:
        script = f"cat /proc/{_started(process).pid}/task/*/schedstat"
        lines = self._lab.backend.run(node, ["sh", "-c", script]).check().stdout.splitlines()
        return sum(int(line.split()[0]) for line in lines) / 1e9


def _started(process: Process | None) -> Process:
    assert process is not None  # noqa: S101 - after `Bench.start`
    return process


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a laboratory, and measure in turns."""
    lab = Ladder(backend_class(arguments.lab)(f"{os.getpid():x}"))
    turns = {way: Turns() for way in WAYS}
    foreign = []
    try:
        lab.backend.up()
        lab.backend.tap.record(on=False)
        bench = Bench(lab, arguments)
        bench.start()
        bench.turn("quiet")  # warm-up
        for _ in range(arguments.rounds):
            for way, values in turns.items():
                foreign.append(foreign_load())
                rate, relay, agent = bench.turn(way)
                values.megabytes_per_second.append(round(rate, 1))
                values.relay.append(round(relay, 3))
                values.agent.append(round(agent, 3))
        lost = lab.enclave_status()["application"]["lost_bytes"]
    finally:
        lab.backend.down()
    medians = {way: values.medians() for way, values in turns.items()}
    return {
        "medians": medians,
        "turns": {way: vars(values) for way, values in turns.items()},
        "lost_bytes": lost,
        "foreign_load": round(statistics.median(foreign), 2),
    }


def as_table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    rows: list[tuple[str, ...]] = [("", *WAYS)]
    rows += [(key, *(f"{report['medians'][way][key]:g}" for way in WAYS)) for key in vars(Turns())]
    return "\n".join(f"{name:22}" + "".join(f"{value:>12}" for value in values) for name, *values in rows)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.output", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of the table")
    parser.add_argument("--lab", default="netns", help="the laboratory's backend (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--transfer", type=int, default=1024, metavar="MIB", help="size of each transfer")
    parser.add_argument("--burst", type=int, default=100, metavar="MB", help="of output")
    arguments = parser.parse_args()
    unwind_on_sigterm()
    report = measure(arguments)
    print(json.dumps(report) if arguments.json else f"{as_table(report)}\nforeign load: {report['foreign_load']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
