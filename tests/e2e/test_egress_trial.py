"""``wgvsock egress test`` predicts what happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.ladder import Ladder
from lab.topology import TOPOLOGY, Node

pytestmark = pytest.mark.lab

WGVSOCK = str(Path(sys.executable).with_name("wgvsock"))
NAME = f"www.{TOPOLOGY.zone}"
POLICY = {
    "default": "deny",
    "allow": [
        {"name": NAME, "ports": [80]},
        {"network": f"{TOPOLOGY.external4}/32", "protocol": "any", "ports": [7]},
        {"network": f"{TOPOLOGY.external6}/128", "protocol": "icmp"},
    ],
}

DESTINATIONS = (
    ("tcp", TOPOLOGY.external4, 7),
    ("udp", TOPOLOGY.external4, 7),
    ("tcp", TOPOLOGY.external6, 7),
    ("udp", TOPOLOGY.external6, 7),
    ("ping", TOPOLOGY.external4, 0),
    ("ping", TOPOLOGY.external6, 0),
    ("ping", TOPOLOGY.relay4, 0),
    ("http", TOPOLOGY.metadata4, 80),
    ("http", NAME, 80),
    ("tcp", NAME, 81),
    ("http", f"mail.{TOPOLOGY.zone}", 80),
)


@pytest.fixture(scope="module")
def policed(network: Ladder) -> Iterator[Ladder]:
    network.clear()
    network.start_enclave()
    network.start_relay(network.backend.relay_config() | {"egress": POLICY})
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


def trial(lab: Ladder, kind: str, host: str, port: int) -> tuple[int, dict[str, Any]]:
    """Return exit status, and the running Relay's answer."""
    destination = f"[{host}]:{port}" if port and ":" in host else f"{host}:{port}" if port else host
    protocol = {"ping": "icmp", "http": "tcp"}.get(kind, kind)
    argv = [WGVSOCK, "egress", "test", destination, "--protocol", protocol, "--json"]
    done = lab.backend.run(Node.POD, [*argv, "--socket", "/run/wgvsock/relay.sock"])
    return done.exit_code, json.loads(done.stdout)["relay"]


def test_the_addresses_of_a_name_are_those_that_it_has(policed: Ladder) -> None:
    status, relay = trial(policed, "http", NAME, 80)
    (before,) = relay["enclave"]
    assert (status, before["allowed"], before["address"]) == (0, True, None)
    found = policed.probe(Node.ENCLAVE, "resolve", NAME)["addresses"]
    status, relay = trial(policed, "http", NAME, 80)
    assert status == 0
    assert sorted(outcome["address"] for outcome in relay["enclave"]) == sorted(found)
    assert {outcome["why"] for outcome in relay["enclave"]} == {f'allowed by rule "allow tcp 80 to {NAME}"'}


def test_a_name_has_to_pass_by_each_of_its_addresses(policed: Ladder) -> None:
    policed.probe(Node.ENCLAVE, "resolve", NAME)
    status, relay = trial(policed, "tcp", NAME, 7)
    by_address = {outcome["address"]: outcome["allowed"] for outcome in relay["enclave"]}
    assert by_address == {TOPOLOGY.external4: True, TOPOLOGY.external6: False}
    assert status == 1


@pytest.mark.parametrize(("kind", "host", "port"), DESTINATIONS)
def test_what_it_says_is_what_happens(policed: Ladder, kind: str, host: str, port: int) -> None:
    policed.try_probe(Node.ENCLAVE, "resolve", host)
    status, relay = trial(policed, kind, host, port)
    assert {outcome["allowed"] for outcome in relay["enclave"]} == {status == 0}
    report = policed.try_probe(Node.ENCLAVE, kind, host, *([str(port)] if port else []), "--timeout", "2")
    assert report["ok"] == (status == 0), (report, relay)
