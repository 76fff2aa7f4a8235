"""A process on the Relay's machine floods the Enclave's WireGuard port: the Relay is served, and soon reconnects.

The attacker runs on this machine, bypassing the tap, with the Relay's own source address. The figures of both are
written to standard output (``pytest -s``).
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.backend import Process
from lab.ladder import Ladder
from lab.process import LocalProcess
from lab.topology import Node
from tests.e2e.test_recovery import QUICK, stream
from wgvsock.addresses import WIREGUARD_PORT

pytestmark = pytest.mark.lab

CUTS = 5
HANDSHAKES = 12
SEEN = 650
"""Connections per second that once kept a Relay out. Two busy processors guarantee an attacker no more."""


EMULATED = 10
"""An emulated processor is slower by about this factor. A flood for two real ones leaves it no time for anything."""


def slowness(lab: Ladder) -> int:
    return 1 if lab.backend.name == "netns" else EMULATED


class Flood:
    """A running attacker."""

    def __init__(self, lab: Ladder, kind: str, rate: float) -> None:
        self.lab = lab
        side = getattr(lab.backend, "_enclave_side", None)
        if side is None or lab.backend.name not in {"netns", "pair"}:
            pytest.skip("no process of this machine reaches the enclave's port here")
        status = lab.backend.status(Node.ENCLAVE)
        assert status is not None
        key = base64.b64decode(status["wireguard"]["public_key"]).hex()
        argv = [sys.executable, "-m", "tests.e2e.flooder", kind, str(side(WIREGUARD_PORT)), key, "--rate", str(rate)]
        self.process: Process = LocalProcess.start(
            "flooder", argv, log=Path(lab.backend.directory) / "logs/flooder.log", stdin=True
        )

    def end(self) -> dict[str, float]:
        """Stop it, and return its rates."""
        self.process.stdin.close()
        assert self.process.wait(self.lab.backend.deadline(20)) == 0, self.process.output()
        report: dict[str, float] = json.loads(self.process.output().splitlines()[-1])
        return report


@contextmanager
def flood(lab: Ladder, kind: str, rate: float) -> Iterator[Flood]:
    going = Flood(lab, kind, rate)
    try:
        time.sleep(2)  # the flood has to be there, and the victim under load
        yield going
    finally:
        going.process.kill()


def say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")


def handshakes(lab: Ladder) -> tuple[int, int]:
    """Return the Relay's initiations, and responses to it, so far. The flood does not pass the vsock point."""
    frames = [frame.name for frame in lab.history.update().frames]
    return frames.count("handshake initiation"), frames.count("handshake response")


def seconds_until_traffic_passes(lab: Ladder) -> float:
    """Measure from now on, with a datagram every 100 ms."""
    began = time.monotonic()
    arguments = ("udp", lab.topology.external4, "7", "--timeout", "600")
    report = lab._probe(Node.ENCLAVE, 0.1, arguments, lab.backend.deadline(70))
    assert report["ok"], report
    return time.monotonic() - began


@pytest.mark.parametrize("rate", [400], ids=["400-a-second"])
def test_the_relay_s_handshakes_are_served_beside_a_flood_of_initiations(network: Ladder, rate: float) -> None:
    network.raise_tunnel(QUICK)
    rate /= slowness(network)
    with (
        stream(network, Node.ENCLAVE, network.topology.external4, 7) as going,
        flood(network, "initiations", rate) as attacker,
    ):
        sent, answered = handshakes(network)
        network.backend.deadline(60).poll(
            lambda: handshakes(network)[0] >= sent + HANDSHAKES, "the Relay to start handshakes"
        )
        time.sleep(0.2)  # the last one's answer
        sent, answered = (now - then for now, then in zip(handshakes(network), (sent, answered), strict=True))
        rates = attacker.end()
        going.finish()
    say(f"flood of initiations: {rates}; the Relay won {answered} of {sent} handshakes")
    assert rates["initiations_per_second"] >= 0.7 * rate
    assert answered >= sent - 1


@pytest.mark.parametrize(("rate", "limit"), [(650, 3), (5000, 15)], ids=["650-a-second", "as-fast-as-it-goes"])
def test_the_relay_is_back_soon_in_a_flood_of_connections(network: Ladder, rate: float, limit: float) -> None:
    if rate > SEEN and slowness(network) > 1:
        pytest.skip("an emulated processor is at its end with the attacker's connections alone")
    network.raise_tunnel()
    rate, seen = rate / slowness(network), SEEN / slowness(network)
    with flood(network, "connections", rate) as attacker:
        seconds = []
        for _ in range(CUTS):
            network.backend.tap.drop()
            seconds.append(seconds_until_traffic_passes(network))
        rates = attacker.end()
    times = ", ".join(f"{each:.2f}" for each in seconds)
    say(f"flood of connections: {rates}; traffic passed again after {times} s")
    assert rates["attempts_per_second"] >= 0.7 * seen
    assert statistics.median(seconds) < limit * network.backend.scale
