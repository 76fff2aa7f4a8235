"""The egress policy that is measured into the image: it holds behind a Relay that lets everything pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from lab import uplinks
from lab.ladder import PROBE, Ladder
from lab.topology import Node, Point
from lab.watch.dissect import ip_layers
from lab.watch.observation import Observation

pytestmark = pytest.mark.lab

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
SOURCE_PORT = 40404

BEHIND = Point.RELAY_ETH0 if uplinks.asked_for() == "userspace" else Point.RELAY_WG0
"""The first point that shows what has left the enclave. A Relay without wg0 shows what its engine sends for it."""

TIMES = 5
AT_ONCE = 50
"""Milliseconds within which an application has to learn of a refusal when the processors are idle."""

ATTEMPT = """
import json, socket, sys, time
kind, host, port, source_port, times = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
types = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
errors, took = [], []
for _ in range(times):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, types[kind]) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", source_port))
        sock.settimeout(5)
        began, error = time.monotonic(), None
        try:
            sock.connect((host, port))
            if kind == "udp":
                sock.send(b"a question")
                sock.recv(100)
        except OSError as refused:
            error = type(refused).__name__
        errors.append(error)
        took.append((time.monotonic() - began) * 1e3)
print(json.dumps({"errors": errors, "ms": min(took)}))
"""


def address(lab: Ladder, name: str, family: int) -> str:
    return str(getattr(lab.topology, f"{name}{family}"))


def attempt(lab: Ladder, kind: str, host: str, port: int, times: int = 1) -> tuple[set[str | None], float]:
    """Return how an application's attempts end, and after how many milliseconds the fastest did."""
    argv = [sys.executable, "-I", "-S", "-c", ATTEMPT, kind, host, str(port), str(SOURCE_PORT), str(times)]
    done = lab.backend.run(Node.ENCLAVE, argv, deadline=lab.backend.deadline(30)).check()
    report = json.loads(done.stdout)
    return set(report["errors"]), report["ms"]


def seen(observation: Observation, point: Point, *hosts: str) -> list[Any]:
    """Packets to one of these hosts."""
    found = (ip_layers(packet) for packet in observation.packets(point))
    return [packet for packet in found if packet is not None and packet.dst in hosts]


def egress(lab: Ladder) -> dict[str, Any]:
    """Return what the agent reports about its policy."""
    status = lab.backend.status(Node.ENCLAVE)
    assert status is not None
    found: dict[str, Any] = status["egress"]
    return found


@pytest.fixture(scope="module")
def measured(network: Ladder) -> Iterator[Ladder]:
    """Only the external echo port is open to the enclave, over TCP and UDP. The Relay opens everything."""
    topology = network.topology
    rules = [
        {"network": f"{topology.external4}/32", "ports": [7], "protocol": "any"},
        {"network": f"{topology.external6}/128", "ports": [7], "protocol": "any"},
    ]
    network.clear()
    network.start_enclave({**network.backend.enclave_config(), "egress": {"default": "deny", "allow": rules}})
    metadata = [f"{topology.metadata4}/32", f"{topology.metadata6}/128"]
    opened = [{"relay": True}, *({"network": closed, "protocol": "any"} for closed in metadata)]
    network.start_relay({**network.backend.relay_config(), "egress": {"default": "allow", "allow": opened}})
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


@FAMILIES
def test_what_a_rule_names_passes(measured: Ladder, family: int) -> None:
    external = address(measured, "external", family)
    measured.probe(Node.ENCLAVE, "tcp", external, "7", "--bytes", "2000000")
    for size in ("64", "20000"):  # whole, and in fragments
        measured.probe(Node.ENCLAVE, "udp", external, "7", "--bytes", size)


@FAMILIES
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_relay_that_opens_everything_cannot_make_it_send(measured: Ladder, family: int, kind: str) -> None:
    external, before = address(measured, "external", family), egress(measured)["denied"].get("default", 0)
    with measured.observe(Point.ENCLAVE_WG0, BEHIND) as observation:
        errors, took = attempt(measured, kind, external, 80, TIMES)
        measured.probe(Node.ENCLAVE, "tcp", external, "7")  # behind it, on the same way
        carried = seen(observation, BEHIND, external)
        tried = seen(observation, Point.ENCLAVE_WG0, external)
    layer = TCP if kind == "tcp" else UDP
    assert [packet[layer].dport for packet in tried if layer in packet and packet[layer].dport == 80]
    assert carried
    assert {packet[TCP].dport for packet in carried if TCP in packet} == {7}
    assert [packet for packet in carried if UDP in packet] == []
    assert errors <= {"ConnectionRefusedError", "OSError", "PermissionError"}
    assert took < AT_ONCE
    assert egress(measured)["denied"]["default"] == before + TIMES
    latest = egress(measured)["refused"][0]
    assert (latest["destination"], latest["protocol"], latest["port"]) == (external, kind, 80)


@FAMILIES
@pytest.mark.parametrize(("place", "port"), [("metadata", 80), ("relay", 9808)])
def test_what_is_closed_by_default_stays_in_the_enclave_too(
    measured: Ladder, family: int, place: str, port: int
) -> None:
    host = address(measured, place, family)
    with measured.observe(BEHIND) as observation:
        errors, _ = attempt(measured, "tcp", host, port)
        measured.probe(Node.ENCLAVE, "tcp", measured.topology.external4, "7")
        assert seen(observation, BEHIND, measured.topology.external4)
        carried = [packet for packet in seen(observation, BEHIND, host) if TCP in packet]
        # The agent's reports go to the Relay at any moment.
        assert [packet.summary() for packet in carried if packet[TCP].dport == port] == []
    assert errors == {"ConnectionRefusedError"}
    latest = egress(measured)["refused"][0]
    assert (latest["destination"], latest["by"]) == (host, "closed network" if place == "metadata" else "relay machine")


@FAMILIES
def test_a_packet_that_the_relay_forges_opens_no_connection(measured: Ladder, family: int) -> None:
    """It comes from the enclave's intended destination, so that the connection could seem to be an answer."""
    external, enclave = address(measured, "external", family), address(measured, "enclave", family)
    forged = (IP if family == 4 else IPv6)(src=external, dst=enclave) / TCP(sport=80, dport=SOURCE_PORT, flags="SA")
    with measured.observe(Point.ENCLAVE_WG0, Point.RELAY_WG0) as observation:
        measured.backend.run(Node.POD, [*PROBE, "inject", "wg0"], stdin=bytes(forged).hex().encode() + b"\n").check()
        measured.probe(Node.POD, "ping", enclave)
        assert seen(observation, Point.ENCLAVE_WG0, enclave)
        errors, _ = attempt(measured, "tcp", external, 80)
        measured.probe(Node.ENCLAVE, "tcp", external, "7")
        carried = seen(observation, Point.RELAY_WG0, external)
    assert errors == {"ConnectionRefusedError"}
    flags = {str(packet[TCP].flags) for packet in carried if TCP in packet and packet[TCP].dport == 80}
    assert flags <= {"R"}  # what the enclave's kernel answers to the forged one


@FAMILIES
def test_a_published_port_answers_all_the_same(measured: Ladder, family: int) -> None:
    pod, application = address(measured, "pod", family), measured.topology.application
    measured.probe(Node.EXTERNAL, "tcp", pod, str(application.echo_port), "--bytes", "2000000")
    for size in ("64", "9000"):
        measured.probe(Node.EXTERNAL, "udp", pod, str(application.echo_port), "--bytes", size)
    report = measured.probe(Node.EXTERNAL, "http", pod, str(application.http_port), "/whoami")
    assert json.loads(report["body"])["address"] == address(measured, "external", family)


def test_names_are_resolved_and_the_path_is_measured(measured: Ladder) -> None:
    found = measured.probe(Node.ENCLAVE, "resolve", f"www.{measured.topology.zone}")
    assert found["addresses"]
    measured.probe(Node.ENCLAVE, "ping", measured.topology.relay4)
    measured.backend.deadline(15).poll(lambda: measured.enclave_status()["path"]["alive"] is True, "the path")


def test_other_protocols_and_garbage_go_no_further(measured: Ladder) -> None:
    external = measured.topology.external4
    packets = [
        bytes(IP(src=measured.topology.enclave4, dst=external, proto=47) / Raw(b"tunnelled")),
        bytes(IP(src=measured.topology.enclave4, dst=external, frag=9) / Raw(b"a later fragment")),
        b"\x45" + bytes(30),
    ]
    with measured.observe(BEHIND) as observation:
        lines = b"".join(packet.hex().encode() + b"\n" for packet in packets)
        measured.backend.run(Node.ENCLAVE, [*PROBE, "inject", "wg0"], stdin=lines).check()
        measured.probe(Node.ENCLAVE, "tcp", external, "7")
        carried = seen(observation, BEHIND, external)
    assert {packet.proto for packet in carried} == {6}
    assert {"protocol", "fragment", "unreadable"} <= egress(measured)["denied"].keys()
    assert measured.drops(Node.ENCLAVE)["egress_denied"] >= 3


def test_the_agent_counts_what_it_denied(measured: Ladder) -> None:
    attempt(measured, "tcp", measured.topology.external4, 81)
    status = measured.backend.status(Node.ENCLAVE)
    assert status is not None
    assert status["counters"]["dropped"]["egress_denied"] == sum(status["egress"]["denied"].values())
