"""Two relays with one signing key, as during a deployment that starts the new one before it ends the old."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Process
from lab.config import with_first_enclave
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.topology import Node

pytestmark = pytest.mark.lab

WGVSOCK = str(Path(sys.executable).with_name("wgvsock"))
AT_ONCE = 5.0
"""Seconds until the older one has stepped back: one second of waiting, one exchange, and a busy machine."""


@pytest.fixture
def shared_key(network: Ladder) -> Iterator[dict[str, Any]]:
    """A Relay's configuration with a signing key that a second one can share, and no running service."""
    if type(network.backend) is not NetnsBackend:
        pytest.skip("only network namespaces let a second machine reach the enclave's sockets")
    network.clear()
    path = network.backend.directory / "signing.key"
    path.write_text(base64.b64encode(os.urandom(32)).decode())
    path.chmod(0o600)
    config = network.backend.relay_config()
    config["provisioning"] = {**config.get("provisioning", {}), "signing_key_file": str(path)}
    yield config
    network.clear()


def start_elsewhere(lab: Ladder, config: dict[str, Any]) -> Process:
    """The same Relay on another machine."""
    backend = lab.backend
    assert isinstance(backend, NetnsBackend)
    path = backend.write_config(Node.EXTERNAL, config)
    return backend.spawn(Node.EXTERNAL, [WGVSOCK, "relay", "run", "--config", path], name="second")


def status_elsewhere(lab: Ladder) -> dict[str, Any] | None:
    done = lab.backend.run(Node.EXTERNAL, [WGVSOCK, "status", "--json"])
    return with_first_enclave(json.loads(done.stdout)) if done.stdout else None


def test_the_older_steps_back_and_the_younger_works(network: Ladder, shared_key: dict[str, Any]) -> None:
    network.start_enclave()
    network.start_relay(shared_key)
    network.wait_ready()
    second = start_elsewhere(network, shared_key)
    try:
        deadline = network.backend.deadline(20)
        ready = deadline.poll(lambda: (status_elsewhere(network) or {}).get("ready"), "the younger Relay to be ready")
        assert ready
        stepped_back = network.backend.deadline(AT_ONCE).poll(
            lambda: status if (status := network.relay_status())["state"] == "superseded" else None,
            "the older Relay to step back",
        )
        assert not stepped_back["ready"]
        assert not stepped_back["nat"]["open"]
        assert stepped_back["wireguard"]["peers"] == []
        assert "newer relay" in stepped_back["provisioning"]["error"]["what"]
        assert "masquerade" not in network.nat_rules()

        network.probe(Node.ENCLAVE, "ping", network.topology.relay4)  # the younger one's end of the tunnel
        network.attest_again()  # even an operator's demand makes no fight of it
        younger = status_elsewhere(network)
        assert younger is not None
        assert younger["ready"]
        assert younger["provisioning"]["attempts"]["ok"] == 1
        assert network.relay_status()["state"] == "superseded"
        assert network.relay is not None
        assert network.relay.output().count('level=warning at=relay.enclaves.attempts msg="this relay steps back') == 1
    finally:
        second.kill()
