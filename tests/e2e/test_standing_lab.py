"""A laboratory that stays up between commands: started, inspected, broken, repaired, and removed without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli.play import unavailable
from lab.netns.backend import NetnsBackend
from lab.topology import TOPOLOGY

pytestmark = pytest.mark.lab

if BACKEND_LACKS := NetnsBackend.unavailable():
    pytest.skip(f"the netns backend cannot run here: {BACKEND_LACKS}", allow_module_level=True)
if ANSIBLE_LACKS := unavailable():
    pytest.skip(f"Ansible cannot run here: {ANSIBLE_LACKS}", allow_module_level=True)

LAB = [sys.executable, "-m", "lab"]


def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_laboratory_that_stays_up(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path), "LAB": "netns"}
    assert run("status", environment=environment).returncode == 3
    try:
        assert run("up", environment=environment).returncode == 0
        assert run("up", environment=environment).returncode == 0
        status = json.loads(run("status", "--json", environment=environment).stdout)
        assert status["ready"]
        inside = run("sh", "enclave", "--", "ip", "-br", "address", "show", "wg0", environment=environment)
        assert TOPOLOGY.enclave4 in inside.stdout
        assert "the tunnel is up" in run("logs", "relay", environment=environment).stdout

        assert run("fault", "kill", "relay", environment=environment).returncode == 0
        assert run("status", environment=environment).returncode == 4
        assert run("fault", "restart", "relay", environment=environment).returncode == 0
        assert run("fault", "nonsense", environment=environment).returncode == 1
    finally:
        down = run("down", environment=environment)
    assert down.returncode == 0, down.stderr
    assert "nothing is left" in down.stderr
    assert not Path(status["directory"]).exists()
    assert run("down", environment=environment).returncode == 0
