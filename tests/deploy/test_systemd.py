"""The hardened unit, as far as systemd can check it without running it, and as the Ansible role installs it."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT
from tests.unit.lab.ansible.test_playbooks import ansible_playbook, needs_ansible

pytestmark = pytest.mark.slow

UNIT = ROOT / "deploy/systemd/wgvsock-relay.service"
MAX_EXPOSURE = 3.5

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="missing: systemd-analyze (systemd)")

PLAYBOOK = """
- hosts: here
  gather_facts: false
  tasks:
    - ansible.builtin.include_vars: ROLE/defaults/main.yml
    - ansible.builtin.include_vars: ROLE/vars/main.yml
    - ansible.builtin.copy: {content: "{{ wgvsock_unit_text }}", dest: TARGET, mode: "0644"}
      vars: {role_path: ROLE}
"""


class Unit(configparser.RawConfigParser):
    """A unit file: keys keep their case, and may be repeated."""

    def __init__(self, text: str) -> None:
        super().__init__(strict=False, interpolation=None, comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read_string(text)


def exposure(unit: Path, threshold: float) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(threshold * 10)}", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
def test_the_exposure_is_low() -> None:
    judged = exposure(UNIT, MAX_EXPOSURE)
    assert judged.returncode == 0, judged.stdout[-2000:]


@needs_systemd
def test_the_exposure_is_measured_by_what_the_unit_says(tmp_path: Path) -> None:
    softened = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines()
    softened.write_text(
        "\n".join(line for line in lines if not line.startswith(("CapabilityBoundingSet", "SystemCall")))
    )
    assert exposure(softened, MAX_EXPOSURE).returncode != 0


def complaints(text: str, folder: Path) -> list[str]:
    """Return systemd's findings about a unit's lines. The unit's program need not exist."""
    unit = folder / UNIT.name
    unit.write_text(text.replace("/opt/wgvsock/bin/wgvsock", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    return [line for line in said if unit.name in line]


@needs_systemd
def test_systemd_reads_every_line(tmp_path: Path) -> None:
    assert complaints(UNIT.read_text(), tmp_path) == []
    assert complaints(UNIT.read_text().replace("RestrictRealtime=", "RestrictReeltime="), tmp_path)


def test_what_the_relay_needs_is_left_to_it() -> None:
    service = Unit(UNIT.read_text())["Service"]
    assert service["CapabilityBoundingSet"] == "CAP_NET_ADMIN CAP_NET_BIND_SERVICE"
    assert "AF_VSOCK" in service["RestrictAddressFamilies"].split()
    assert service["ProtectKernelTunables"] == "no"  # forwarding
    assert service["KillMode"] == "process"  # the enclaves' own processes outlive us
    assert "DeviceAllow=/dev/net/tun rw" in UNIT.read_text()
    assert "DeviceAllow=/dev/nitro_enclaves rw" in UNIT.read_text()


def test_journal_and_seed_survive_a_stop_and_a_start() -> None:
    service = Unit(UNIT.read_text())["Service"]
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryPreserve"]) == ("wgvsock", "yes")
    assert service["RuntimeDirectoryMode"] == "0700"  # the Relay refuses any other


@needs_ansible
@pytest.mark.parametrize(
    ("role", "command"), [("relay", "/opt/wgvsock/bin/wgvsock"), ("relay", "/usr/local/bin/wgvsock")]
)
def test_the_role_installs_this_unit(role: str, command: str, tmp_path: Path) -> None:
    installed = tmp_path / "installed.service"
    playbook = tmp_path / "unit.yml"
    playbook.write_text(
        PLAYBOOK.replace("ROLE", str(ROOT / "deploy/ansible/roles/wgvsock_service")).replace("TARGET", str(installed))
    )
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "wgvsock_command": command,
    }
    done = ansible_playbook(
        Path("deploy/ansible"), "-i", "here,", "-e", json.dumps({**variables, "wgvsock_role": role}), str(playbook),
        home=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    expected = UNIT.read_text().replace("/opt/wgvsock/bin/wgvsock", command)
    assert installed.read_text() == expected
