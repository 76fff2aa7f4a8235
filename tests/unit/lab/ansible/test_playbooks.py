"""The playbooks and roles as files: syntax, the configuration's template, and a dry run on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.cli.play import unavailable

needs_ansible = pytest.mark.skipif((lacks := unavailable()) is not None, reason=f"Ansible cannot run here: {lacks}")

CHECKOUT = Path(__file__).parents[4]
ROLE = CHECKOUT / "deploy/ansible/roles/wgvsock_service"


def ansible_playbook(folder: Path, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_HOME": str(home), "ANSIBLE_CONFIG": str(CHECKOUT / folder / "ansible.cfg")}
    environment |= {"LC_ALL": "C.UTF-8", "ANSIBLE_REMOTE_TEMP": str(home / "tmp"), "ANSIBLE_NOCOLOR": "1"}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=CHECKOUT / folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "playbook", "inventory"),
    [("lab/ansible", "site.yml", "localhost,"), ("deploy/ansible", "relay.yml", "inventory.example.yml")],
)
def test_syntax(folder: str, playbook: str, inventory: str, tmp_path: Path) -> None:
    done = ansible_playbook(Path(folder), "--syntax-check", "-i", inventory, playbook, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


DRY_RUN = """
- hosts: here
  gather_facts: false
  roles: [wgvsock_service]
"""


@needs_ansible
@pytest.mark.slow
@pytest.mark.parametrize("present", [False, True])
def test_a_dry_run_says_what_would_change_and_changes_nothing(tmp_path: Path, present: bool) -> None:
    playbook, tasks, config = tmp_path / "site.yml", tmp_path / "service.yml", tmp_path / "etc/relay.toml"
    playbook.write_text(DRY_RUN)
    tasks.write_text("[]")
    if present:
        config.parent.mkdir()
        config.write_text('# BEGIN what Ansible writes\nname = "dry"\n# END what Ansible writes\n')
        config.chmod(0o644)  # the role's, whatever the umask
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "wgvsock_command": "/bin/true",
        "wgvsock_config": {"name": "dry"},
        "wgvsock_config_file": str(config),
        "wgvsock_service_tasks": str(tasks),
    }
    done = ansible_playbook(
        Path("deploy/ansible"), "--check", "-i", "here,", "-e", json.dumps(variables), str(playbook), home=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("changed=0" if present else "changed=1") in done.stdout
    assert config.exists() == present


def render(config: dict[str, Any]) -> str:
    """As Ansible renders a template."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 (TOML, no HTML)
    environment.filters["to_json"] = json.dumps
    template = environment.from_string((ROLE / "templates/wgvsock.toml.j2").read_text())
    return template.render(wgvsock_config=config)


KEYS = st.from_regex(r"[a-z_0-9]{1,8}", fullmatch=True)
SCALARS = st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="ascii", exclude_categories=["C"]))
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=3),
    lambda inner: st.dictionaries(KEYS, VALUES | inner | st.lists(inner, min_size=1, max_size=3), max_size=3),
    max_leaves=12,
)


@given(TABLES)
def test_any_configuration_becomes_the_toml_that_reads_as_it(config: dict[str, Any]) -> None:
    assert tomllib.loads(render(config)) == config
