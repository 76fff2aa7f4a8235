"""The traffic of a schedule: `lab.guest.traffic` in the machines, and its reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lab.backend import Backend, Process
from lab.guest.command import alone
from lab.schedule.faults import Flow
from lab.schedule.model import Request
from lab.schedule.site import Room
from lab.topology import Node, Service

TRAFFIC: Final = alone("traffic")

_FLOWS: Final = {
    ("egress", "tcp"): Flow.EGRESS_TCP,
    ("published", "tcp"): Flow.PUBLISHED_TCP,
    ("egress", "udp"): Flow.EGRESS_UDP,
    ("published", "udp"): Flow.PUBLISHED_UDP,
}


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that broke. `time` is Unix seconds."""

    time: float
    flow: Flow
    what: str


@dataclass(slots=True)
class Ledger:
    """The reports of one generator. No I/O.

    Attributes:
        name: For messages: the enclave and the side.
        direction: ``egress`` or ``published``.
        flows: When the newest answered line was sent, by flow. Unix seconds, as all times.
        requests: Of new connections, by kind: the number of successes, and start times of the last and of the oldest
            pending one.
        cuts: Connections that broke.
        failed: Connections that were refused.
    """

    name: str
    direction: str
    flows: dict[str, float] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    failed: list[Request] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Process one line."""
        said: dict[str, Any] = json.loads(line)
        match said["event"]:
            case "state":
                self.flows, self.requests = said["flows"], said["requests"]
            case "cut":
                flow = _FLOWS[self.direction, said["flow"][:3]]
                self.cuts.append(Cut(said["time"], flow, f"{self.name} {said['flow']}: {said['why']}"))
            case "failed":
                what = f"{self.name} {said['request']}: {said['why']}"
                self.failed.append(Request(said["begin"], said["time"], what))

    def behind(self, since: float) -> list[str]:
        """Return what has made no progress since a moment: flows without an answer, kinds without a new connection."""
        late = [name for name, last in self.flows.items() if last < since]
        late += [name for name, entry in self.requests.items() if entry["last"] < since]
        return [f"{self.name} {name}" for name in late] or ([] if self.flows else [f"{self.name}: nothing yet"])

    def pending(self, before: float) -> bool:
        """Return whether a new connection that was opened before a moment is neither over nor refused."""
        begins = [entry["oldest"] for entry in self.requests.values() if entry["oldest"] is not None]
        return any(begin < before for begin in begins)


class Generator:
    """One running `lab.guest.traffic`."""

    def __init__(self, process: Process, ledger: Ledger, room: int) -> None:
        self.process = process
        self.room = room
        self.ledger = ledger
        self._known = 0
        self._rest = b""

    def read(self) -> Ledger:
        """Update the ledger."""
        with self.process.log.open("rb") as stream:
            stream.seek(self._known)
            data = stream.read()
        self._known += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self.ledger.note(line.decode())
        return self.ledger


class Load:
    """All generators of a laboratory.

    Args:
        backend: The laboratory.
        marker: Is in every line of every flow, and must not be readable anywhere at the vsock point.
    """

    def __init__(self, backend: Backend, marker: str) -> None:
        self._backend = backend
        self._marker = marker
        self._generators: list[Generator] = []

    def start(self, node: Node, room: Room, direction: str, *, hosts: Sequence[str], service: Service) -> None:
        """Start one, in a machine, for an enclave, with a service that is reached at these addresses."""
        argv = [*TRAFFIC, "--marker", self._marker]
        for host in hosts:
            argv += ["--echo", host, str(service.echo_port), "--http", host, str(service.http_port)]
        process = self._backend.spawn(node, argv, name=f"traffic-{room}-{direction}")
        self._generators.append(Generator(process, Ledger(f"{room} {direction}", direction), room.number))

    def behind(self, since: float) -> list[str]:
        """Return what has made no progress since a moment."""
        return [late for generator in self._generators for late in generator.read().behind(since)]

    def pending(self, before: float) -> bool:
        """Return whether the outcome of a new connection that was opened before a moment is still open."""
        return any(generator.read().pending(before) for generator in self._generators)

    def take(self, room: int) -> tuple[list[Cut], list[Request]]:
        """Return connections of an enclave that broke, and that were refused, since the last call."""
        cuts: list[Cut] = []
        failed: list[Request] = []
        for generator in self._generators:
            if generator.room != room:
                continue
            ledger = generator.read()
            cuts += ledger.cuts
            failed += ledger.failed
            ledger.cuts, ledger.failed = [], []
        return cuts, failed

    def succeeded(self) -> int:
        """Return the number of successful new connections so far."""
        ledgers = [generator.read() for generator in self._generators]
        return sum(int(entry["ok"]) for ledger in ledgers for entry in ledger.requests.values())

    def stop(self) -> None:
        """End all generators."""
        for generator in self._generators:
            generator.process.kill()
        self._generators.clear()
