"""Whatever ends or breaks, the other side recovers unaided, connections survive, and nothing is left at the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import uplinks
from lab.backend import Process
from lab.ladder import PROBE, Ladder
from lab.topology import Node

pytestmark = pytest.mark.lab

QUICK = {
    "rekey_after_time": 1.5,
    "reject_after_time": 6.0,
    "rekey_timeout": 0.5,
    "rekey_attempt_time": 20.0,
    "keepalive_timeout": 1.0,
}
"""WireGuard's timers, about eighty times as fast."""


@pytest.fixture
def quick_tunnel(network: Ladder) -> Iterator[Ladder]:
    """A tunnel with fast timers on both sides: the intact one of the previous test, or a new one."""
    network.raise_tunnel(QUICK)
    yield network
    network.backend.tap.resume()


class Stream:
    """One TCP connection with continuous traffic."""

    def __init__(self, lab: Ladder, process: Process) -> None:
        self._lab = lab
        self._process = process

    def progress(self) -> int:
        """Return how many lines have come back."""
        lines = [json.loads(line) for line in self._process.output().splitlines()]
        return max((line.get("alive", 0) for line in lines), default=0)

    def goes_on(self, lines: int = 20) -> None:
        """Wait until some more lines have come back."""
        goal = self.progress() + lines

        def look() -> bool:
            assert self._process.poll() is None, self._process.output()
            return self.progress() >= goal

        self._lab.backend.deadline(20).poll(look, "the connection to go on")

    def finish(self) -> dict[str, Any]:
        """End the connection properly, and return its report."""
        self._process.stdin.close()
        assert self._process.wait(self._lab.backend.deadline(30)) == 0, self._process.output()
        report: dict[str, Any] = json.loads(self._process.output().splitlines()[-1])
        assert report["received"] == report["sent"] > 0
        return report


@contextmanager
def stream(lab: Ladder, node: Node, host: str, port: int) -> Iterator[Stream]:
    argv = [*PROBE, "--scale", f"{lab.backend.scale:g}", "stream", host, str(port), "--timeout", "30"]
    process = lab.backend.spawn(node, argv, name=f"stream-{node}", stdin=True)
    try:
        going = Stream(lab, process)
        going.goes_on()
        yield going
    finally:
        process.kill()


@contextmanager
def streams_both_ways(lab: Ladder) -> Iterator[tuple[Stream, Stream]]:
    """From a process in the enclave outwards, and from outside to the application."""
    port = lab.topology.application.echo_port
    with (
        stream(lab, Node.ENCLAVE, lab.topology.external4, 7) as out,
        stream(lab, Node.EXTERNAL, lab.topology.pod4, port) as back,
    ):
        yield out, back


def handshakes(lab: Ladder) -> int:
    return sum(frame.name == "handshake response" for frame in lab.history.update().frames)


def test_rekeys_under_traffic_lose_no_connection(quick_tunnel: Ladder) -> None:
    before = handshakes(quick_tunnel)
    with streams_both_ways(quick_tunnel) as both:
        quick_tunnel.backend.deadline(20).poll(lambda: handshakes(quick_tunnel) >= before + 3, "three rekeys")
        reports = [going.finish() for going in both]
    assert max(report["longest_gap"] for report in reports) < quick_tunnel.backend.scale


def test_relay_restarted_under_traffic(quick_tunnel: Ladder) -> None:
    with streams_both_ways(quick_tunnel) as both:
        quick_tunnel.restart_relay(timings=QUICK)
        for going in both:
            going.goes_on()
            going.finish()


def test_relay_killed_under_traffic(quick_tunnel: Ladder) -> None:
    with streams_both_ways(quick_tunnel) as both:
        assert quick_tunnel.relay is not None
        quick_tunnel.relay.kill()
        quick_tunnel.start_relay(timings=QUICK)
        for going in both:
            going.goes_on()
            going.finish()


def test_enclave_agent_restarted_under_traffic(quick_tunnel: Ladder) -> None:
    # The connection of a process that is not the agent's child: in an enclave that process would die with the agent.
    with stream(quick_tunnel, Node.ENCLAVE, quick_tunnel.topology.external4, 7) as out:
        quick_tunnel.restart_enclave(timings=QUICK)
        out.goes_on()
        out.finish()


def test_enclave_killed_and_replaced(quick_tunnel: Ladder) -> None:
    assert quick_tunnel.enclave is not None
    quick_tunnel.enclave.kill()
    quick_tunnel.backend.deadline(20).poll(
        lambda: not (quick_tunnel.backend.status(Node.POD) or {"ready": True})["ready"], "the Relay to notice"
    )
    quick_tunnel.start_enclave(timings=QUICK)
    quick_tunnel.wait_ready()
    quick_tunnel.wait_application()
    quick_tunnel.probe(Node.ENCLAVE, "tcp", quick_tunnel.topology.external4, "7")


@pytest.mark.parametrize("order", ["relay-first", "enclave-first"])
def test_started_in_any_order(own_lab: Ladder, order: str) -> None:
    starts: list[Callable[[], None]] = [own_lab.start_relay, own_lab.start_enclave]
    for start in starts if order == "relay-first" else reversed(starts):
        start()
    own_lab.wait_ready()


@pytest.mark.parametrize("end", ["stopped", "relay-killed", "both-killed"])
def test_nothing_is_left_when_both_are_stopped(own_lab: Ladder, end: str) -> None:
    before, inside = own_lab.state(Node.POD), own_lab.state(Node.ENCLAVE)
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    assert (own_lab.state(Node.POD) == before) is (uplinks.asked_for() == "userspace")  # which changes nothing
    assert own_lab.state(Node.ENCLAVE) != inside
    assert own_lab.relay is not None
    assert own_lab.enclave is not None
    if end != "stopped":
        own_lab.relay.kill()
        if end == "both-killed":
            own_lab.enclave.kill()
            own_lab.start_enclave()
        own_lab.start_relay()
        own_lab.wait_ready()
    own_lab.stop()
    assert own_lab.state(Node.POD) == before
    assert own_lab.state(Node.ENCLAVE) == inside
    assert own_lab.backend.processes_in(Node.ENCLAVE) == own_lab.backend.processes_in(Node.POD) == []


def test_a_relay_killed_and_never_started_again_leaves_an_enclave_that_is_cut_off(own_lab: Ladder) -> None:
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    patience = own_lab.patience()
    assert own_lab.relay is not None
    own_lab.relay.kill()
    assert own_lab.has_no_answer(Node.ENCLAVE, "udp", own_lab.topology.external4, "7", patience=patience)
    assert own_lab.enclave is not None
    assert own_lab.enclave.poll() is None
    own_lab.start_relay()  # which takes over what the killed one left
    own_lab.wait_ready()


@pytest.mark.parametrize(
    "fault",
    [
        lambda tap: tap.drop(),
        lambda tap: tap.flip(to="relay", offset=2, port=51820),
        lambda tap: tap.flip(to="enclave", offset=60, port=51820),
        lambda tap: tap.flip(to="relay", offset=0, port=51820),
    ],
    ids=["reset", "length-changed", "payload-changed", "length-gigantic"],
)
def test_the_connection_outlives_a_broken_stream(quick_tunnel: Ladder, fault: Callable[[Any], None]) -> None:
    with streams_both_ways(quick_tunnel) as both:
        fault(quick_tunnel.backend.tap)
        for going in both:
            going.goes_on(50)
            going.finish()


@pytest.mark.parametrize("fault", ["stall", "hold", "refuse"])
def test_the_connection_outlives_a_time_without_vsock(quick_tunnel: Ladder, fault: str) -> None:
    with streams_both_ways(quick_tunnel) as both:
        tap = quick_tunnel.backend.tap
        getattr(tap, fault)()
        if fault == "refuse":
            tap.drop()
        progress = [going.progress() for going in both]
        time.sleep(2)  # how long the fault lasts
        assert all(now - then <= 20 for now, then in zip((g.progress() for g in both), progress, strict=True))
        tap.resume()
        for going in both:
            going.goes_on()
            going.finish()


def test_a_slow_vsock_only_delays(quick_tunnel: Ladder) -> None:
    quick_tunnel.backend.tap.delay(0.15)
    report = quick_tunnel.probe(Node.ENCLAVE, "ping", quick_tunnel.topology.external4, "--count", "2")
    assert min(report["rtt_ms"]) >= 300
    quick_tunnel.probe(Node.ENCLAVE, "tcp", quick_tunnel.topology.external4, "7", "--bytes", "200000")


def test_sigterm_ends_both_at_once_with_zero(own_lab: Ladder) -> None:
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    for process in (own_lab.relay, own_lab.enclave):
        assert process is not None
        process.signal(signal.SIGTERM)
    for process in (own_lab.relay, own_lab.enclave):
        assert process is not None
        assert process.wait(own_lab.backend.deadline(10)) == 0
