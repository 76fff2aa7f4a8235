"""Readiness is measured: a path on which no packet passes ends it, and `wgvsock ping` names the layer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from lab.backend import Completed
from lab.deadline import Deadline
from lab.ladder import Ladder
from lab.topology import Node
from wgvsock.tunnel.probe import FAILURES, INTERVAL, TIMEOUT

pytestmark = pytest.mark.lab

WGVSOCK: Final = str(Path(sys.executable).with_name("wgvsock"))
NOTICED: Final = INTERVAL + FAILURES * TIMEOUT
"""Seconds after which a dead path is known."""

IGNORES_ECHO: Final = "/proc/sys/net/ipv4/icmp_echo_ignore_all"
FAULTS: Final = {
    "the enclave ignores echo": (f"echo 1 > {IGNORES_ECHO}", f"echo 0 > {IGNORES_ECHO}"),
    "the enclave's wg0 is down": ("ip link set wg0 down", "ip link set wg0 up"),
    "the enclave's address is gone": (
        "ip address delete 10.73.0.2/24 dev wg0",
        "ip address add 10.73.0.2/24 dev wg0; ip route replace default via 10.73.0.1 dev wg0",
    ),
}


@pytest.fixture(scope="module")
def quiet(network: Ladder) -> Iterator[Ladder]:
    """A tunnel that carries only a test's packets, because application reports are packets, too."""
    network.clear()
    network.start_enclave()
    network.start_relay(without_reports(network))
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


def without_reports(lab: Ladder) -> dict[str, Any]:
    """A Relay that reads no reports."""
    return {**lab.backend.relay_config(), "application": {"report_port": 0}}


def ping(lab: Ladder, *arguments: str) -> Completed:
    argv = [WGVSOCK, "ping", "--socket", "/run/wgvsock/relay.sock", *arguments]
    return lab.backend.run(Node.POD, argv, deadline=lab.backend.deadline(30))


def in_enclave(lab: Ladder, script: str) -> None:
    lab.backend.run(Node.ENCLAVE, ["sh", "-ec", script]).check()


def enclave(lab: Ladder) -> dict[str, Any]:
    """Return what the Relay reports about its only enclave now."""
    found: dict[str, Any]
    (found,) = lab.relay_status()["enclaves"]
    return found


def wait_path(lab: Ladder, *, alive: bool) -> None:
    lab.backend.deadline(NOTICED + 10).poll(
        lambda: enclave(lab)["path"]["alive"] is alive, f"the path to be {'alive' if alive else 'dead'}"
    )


@contextmanager
def fault(lab: Ladder, name: str) -> Iterator[None]:
    """Something in the enclave breaks and is repaired: the next attestation sets up whatever was lost with it."""
    broken, mended = FAULTS[name]
    wait_path(lab, alive=True)
    in_enclave(lab, broken)
    try:
        yield
    finally:
        in_enclave(lab, mended)
        lab.attest_again()


@pytest.mark.parametrize("name", FAULTS)
def test_a_path_that_dies_in_the_enclave_ends_readiness_until_it_is_back(quiet: Ladder, name: str) -> None:
    with fault(quiet, name):
        wait_path(quiet, alive=False)
        status = enclave(quiet)
        assert not status["ready"]
        assert status["state"] == "ready"  # the relay goes on: attested, with a session and its rules
        assert {each for each, holds in status["conditions"].items() if holds is False} == {"path"}
        done = ping(quiet, "-c", "1")
        assert done.exit_code == 1
        assert b"stream" in done.stdout
        assert b"ip NO REPLY" in done.stdout
        assert b"error[WGV-E057]: enclave: no reply to an echo request\nwhy: stream and session" in done.stderr
        assert b"no longer answers" in done.stderr
    wait_path(quiet, alive=True)
    quiet.wait_ready()
    quiet.probe(Node.ENCLAVE, "tcp", quiet.topology.external4, "7")


def test_ping_shows_every_layer_with_its_times(quiet: Ladder) -> None:
    done = ping(quiet, "-c", "3", "-i", "0.1").check()
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"enclave ({quiet.topology.enclave4})"
    layers = r"\d: stream [\d.]+ ms to connect, \d+ s ago \| handshake [\d.]+ ms, \d+ s ago \| ip [\d.]+ ms"
    assert [bool(re.fullmatch(layers, line)) for line in lines[1:4]] == [True] * 3, lines
    assert lines[4] == "--- enclave: 3 rounds, 3 answered, 0% lost"
    assert re.fullmatch(r"rtt min/avg/max = [\d.]+/[\d.]+/[\d.]+ ms", lines[5])
    answer = json.loads(ping(quiet, "--json", "-c", "2", "-i", "0", "enclave").check().stdout)
    assert (answer["sent"], answer["answered"], answer["failed"], answer["path"]) == (2, 2, None, True)
    unknown = ping(quiet, "nobody")
    assert unknown.exit_code == 2
    assert b"why: it serves enclave" in unknown.stderr


def test_the_reply_of_an_operators_ping_is_left_to_the_kernel(quiet: Ladder) -> None:
    before = enclave(quiet)["path"]
    for address in (quiet.topology.enclave4, quiet.topology.enclave6):
        for _ in range(5):
            quiet.probe(Node.POD, "ping", address)
    after = enclave(quiet)["path"]
    assert after["lost"] == before["lost"]
    assert after["alive"] is True
    assert after["rtt_ms"]["min"] <= after["rtt_ms"]["p50"]


def test_a_session_that_comes_to_a_dead_path_does_not_hide_it(quiet: Ladder) -> None:
    with fault(quiet, "the enclave ignores echo"):
        wait_path(quiet, alive=False)
        exchanges = enclave(quiet)["provisioning"]["attempts"]["ok"]
        quiet.attest_again()
        quiet.backend.deadline(20).poll(
            lambda: enclave(quiet)["provisioning"]["attempts"]["ok"] > exchanges, "another attestation"
        )
        assert enclave(quiet)["path"]["alive"] is False
    quiet.wait_ready()


def test_packets_of_the_enclave_prove_its_path_though_it_ignores_echo(quiet: Ladder) -> None:
    with fault(quiet, "the enclave ignores echo"):
        until = Deadline(NOTICED + 2 * TIMEOUT, scale=quiet.backend.scale)
        while not until.expired:
            quiet.probe(Node.ENCLAVE, "ping", quiet.topology.external4)
            assert enclave(quiet)["path"]["alive"] is True
    quiet.wait_ready()


def test_an_enclave_that_never_answers_echo_is_ready_and_its_path_unknown(own_lab: Ladder) -> None:
    in_enclave(own_lab, f"echo 1 > {IGNORES_ECHO}")
    try:
        own_lab.start_enclave()
        own_lab.start_relay(without_reports(own_lab))
        own_lab.wait_ready()
        own_lab.backend.deadline(30).poll(lambda: enclave(own_lab)["path"]["lost"] >= FAILURES + 1, "losses")
        status = enclave(own_lab)
        assert status["ready"]
        assert status["path"]["alive"] is not False
        assert status["path"]["rtt_ms"] == {"last": None, "min": None, "p50": None}
        done = ping(own_lab, "-c", "1")
        assert done.exit_code == 1
        assert b"why: " in done.stderr
    finally:
        in_enclave(own_lab, f"echo 0 > {IGNORES_ECHO}")


def test_ping_without_a_stream_says_so(own_lab: Ladder) -> None:
    gone = ping(own_lab)
    assert gone.exit_code == 3
    assert b"error[WGV-E087]" in gone.stderr
    own_lab.start_relay()
    own_lab.backend.deadline(20).poll(lambda: own_lab.backend.status(Node.POD), "the Relay to answer")
    done = ping(own_lab, "-c", "1")
    assert done.exit_code == 1
    assert b"stream DOWN | handshake NONE | ip NO REPLY" in done.stdout
    assert b"error[WGV-E057]: enclave: no stream" in done.stderr
