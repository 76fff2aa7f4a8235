"""One soak: a new laboratory, traffic that never ends, churn, and samples of everything that can grow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lab.backend import Process
from lab.backends import choose
from lab.errors import LabError
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.process import processor_shares
from lab.schedule.census import count_process
from lab.schedule.load import Load
from lab.schedule.site import Site
from lab.soak.trend import Limit, Trend
from lab.topology import Node

ARTIFACTS: Final = Path("artifacts/soak")

PERIOD: Final = 2.0
"""Seconds between two samples, which cost each service a few milliseconds."""

ATTESTED_EVERY: Final = 5
"""Samples between two attestations of the enclave: each includes an exchange, a configuration and a handshake."""

CHURN_EVERY: Final = 23
"""Samples between two bursts of churn: hundreds of simultaneous short connections."""

IDLE: Final = 60.0
"""Seconds of an idle tunnel before the load begins."""

LIMITS: Final = {
    "resident memory": ("KiB", Limit(share=0.03, slack=1024)),
    "descriptors": ("", Limit(share=0.0, slack=2)),
    "tasks": ("", Limit(share=0.0, slack=2)),
    "log": ("B/s", Limit(share=0.25, slack=200)),
}
"""What is sampled, and how much it may rise. A heap grows in steps of some hundred KiB."""

FORGOTTEN_AFTER: Final = 150.0
"""Seconds after the load until connection tracking has forgotten it. A closed TCP connection stays there for 120 s
(nf_conntrack_tcp_timeout_time_wait). During the load the number of entries follows its bursts and tells nothing."""

STRAY: Final = 30
"""Entries beyond those of the idle tunnel that may be there then: DNS, probes and attestations go on."""

Samples = dict[tuple[str, str], list[tuple[float, float]]]


class Soak:
    """Samples a laboratory under load.

    Args:
        site: The laboratory, with its services running.
        tell: Gets one line per minute.
    """

    def __init__(self, site: Site, tell: Callable[[str], None]) -> None:
        self._site = site
        self._tell = tell
        self._samples: Samples = {}
        self._logged: dict[str, tuple[float, int]] = {}

    def run(self, seconds: float) -> list[Trend]:
        """Run for some seconds, and return the trends.

        Raises:
            LabError: A service ended, or traffic made no progress.
        """
        load = Load(self._site.backend, "soaked")
        idle = self._tracked()
        started = time.monotonic()
        try:
            self._start(load)
            for number, now in enumerate(_ticks(seconds)):
                self._site.ladder.look_ready()  # raises if a service has ended
                self._sample(now - started)
                if number % ATTESTED_EVERY == 0:
                    self._sample_logs(now - started)
                if number % ATTESTED_EVERY == 0:
                    self._site.ladder.attest_again()
                if number % CHURN_EVERY == CHURN_EVERY - 1:
                    self._churn()
                if number % 30 == 29:
                    self._tell(f"{now - started:.0f} s: {load.succeeded()} new connections succeeded")
            if late := load.behind(time.time() - 10):
                raise LabError("traffic makes no progress", why="; ".join(late))
        finally:
            load.stop()
        self._wait_until_forgotten(idle)
        return self.trends()

    def idle(self, seconds: float) -> dict[str, float]:
        """Return the share of a core that each service uses with an idle tunnel."""
        return processor_shares({process.name: process.pid for process in self._services()}, seconds)

    def trends(self) -> list[Trend]:
        """Return one trend for each value of each process."""
        return [
            Trend(f"{whose} {what}", LIMITS[what][0], samples, LIMITS[what][1])
            for (whose, what), samples in sorted(self._samples.items())
        ]

    def _start(self, load: Load) -> None:
        topology = self._site.ladder.topology
        (room,) = self._site.own_rooms
        outside = topology.service(Node.EXTERNAL)
        load.start(room.node, room, "egress", hosts=(topology.external4, topology.external6), service=outside)
        load.start(Node.EXTERNAL, room, "published", hosts=(topology.pod4, topology.pod6), service=room.service)

    def _sample(self, at: float) -> None:
        for process in self._services():
            name = process.name
            census = count_process(process, self._site.backend.tasks_of(name), self._site.backend.deadline(10))
            self._note(name, "resident memory", at, census.memory)
            self._note(name, "descriptors", at, sum(census.descriptors.values()))
            self._note(name, "tasks", at, sum(census.tasks.values()))

    def _tracked(self) -> int:
        return int(self._site.in_pod("cat /proc/sys/net/netfilter/nf_conntrack_count"))

    def _wait_until_forgotten(self, idle: int) -> None:
        deadline = time.monotonic() + FORGOTTEN_AFTER
        while (left := self._tracked()) > idle + STRAY:
            if time.monotonic() > deadline:
                why = f"{left} entries are left, and {idle} were there before the load"
                raise LabError("connection tracking grows", why=why)
            time.sleep(PERIOD)
        self._tell(f"pod conntrack: {idle} entries before the load, {left} after it")

    def _sample_logs(self, at: float) -> None:
        """Once per attestation interval, because attestations cause most lines: other samples would have none."""
        for process in self._services():
            size = process.log.stat().st_size
            if process.name in self._logged:
                before, known = self._logged[process.name]
                self._note(process.name, "log", at, (size - known) / (at - before))
            self._logged[process.name] = (at, size)

    def _churn(self) -> None:
        """Open many connections at once, and close them."""
        topology = self._site.ladder.topology
        script = (
            "import socket\n"
            f"for host in ({topology.external4!r}, {topology.external6!r}):\n"
            f"    made = [socket.create_connection((host, {topology.service(Node.EXTERNAL).echo_port}), 5)"
            " for _ in range(100)]\n"
            "    [one.close() for one in made]\n"
        )
        self._site.backend.run(self._site.own_rooms[0].node, ["python3", "-I", "-S", "-c", script]).check()

    def _services(self) -> Iterator[Process]:
        ladder = self._site.ladder
        for process in (ladder.relay, ladder.enclave):
            if process is None:
                raise LabError("a service is not running")
            yield process

    def _note(self, whose: str, what: str, at: float, value: float) -> None:
        self._samples.setdefault((whose, what), []).append((at, value))


def _ticks(seconds: float) -> Iterator[float]:
    """Yield the time, once per interval, until some seconds have passed."""
    begin = time.monotonic()
    due = begin
    while due < begin + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        yield time.monotonic()
        due = max(due + PERIOD, time.monotonic())


def run(minutes: float) -> int:
    """Soak a laboratory. The exit status is 1 if something grows, or the run was too short to tell.

    Raises:
        LabError: It could not be started, or did not survive.
    """
    choose(NetnsBackend.name)
    backend = NetnsBackend(f"{os.getpid():x}k")
    ladder = Ladder(backend)
    try:
        backend.up()
        site = Site(ladder)
        site.start()
        soak = Soak(site, lambda line: print(line, flush=True))
        shares = ", ".join(f"{name} {share:.2%}" for name, share in soak.idle(IDLE).items())
        print(f"idle: {shares} of a core", flush=True)
        trends = soak.run(60 * minutes)
        failed = [trend for trend in trends if trend.grows or trend.slope is None]
        if failed:
            backend.keep_artifacts(ARTIFACTS)
        ladder.stop()
    finally:
        backend.down()
    for trend in trends:
        print(f"{'GROWS ' if trend.grows else ''}{trend}", flush=True)
    return 1 if failed else 0
