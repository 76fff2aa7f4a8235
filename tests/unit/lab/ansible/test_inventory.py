from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.ansible.inventory import inventory, main
from lab.netns.backend import NetnsBackend
from lab.topology import TOPOLOGY


@pytest.fixture
def backend(tmp_path: Path) -> NetnsBackend:
    backend = NetnsBackend("1", directory=tmp_path)
    backend.root_sha256 = "ab" * 32
    backend.enclave_measurements = {f"PCR{number}": f"{number:096x}" for number in range(3)}
    return backend


def test_every_machine_is_in_it_and_can_be_entered(backend: NetnsBackend) -> None:
    hosts = inventory(backend)["_meta"]["hostvars"]
    assert set(hosts) == {str(node) for node in TOPOLOGY.nodes}
    for node in TOPOLOGY.nodes:
        assert hosts[node]["ansible_connection"] == "lab"
        assert hosts[node]["lab_enter"] == backend.enter(node)
        assert hosts[node]["ansible_python_interpreter"] == sys.executable


def test_groups_name_known_machines_alone(backend: NetnsBackend) -> None:
    groups = inventory(backend)
    hosts = groups.pop("_meta")["hostvars"]
    assert groups["relays"]["hosts"] == ["pod"]
    for group in groups.values():
        assert set(group["hosts"]) <= set(hosts)


def test_services_get_the_configuration_of_the_behaviour_suite(backend: NetnsBackend) -> None:
    hosts = inventory(backend)["_meta"]["hostvars"]
    assert hosts["pod"]["wgvsock_config"] == backend.relay_config()
    assert hosts["enclave"]["wgvsock_config"] == backend.enclave_config()
    assert "wgvsock_config" not in hosts["external"]


def test_a_request_goes_each_way(backend: NetnsBackend) -> None:
    hosts = inventory(backend)["_meta"]["hostvars"]
    assert hosts["enclave"]["verification_text"] == "hello from external"
    assert hosts["external"]["verification_text"] == "hello from enclave"
    assert hosts["external"]["verification_url"] == {"host": backend.topology.pod4, "port": 8080}


@pytest.mark.parametrize(("argv", "whole"), [(["--list"], True), (["--host", "pod"], False)])
def test_it_speaks_as_an_inventory_script(
    backend: NetnsBackend,
    argv: list[str],
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lab.cli.standing.attach", lambda: backend)
    assert main(argv) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == (json.loads(json.dumps(inventory(backend))) if whole else {})
