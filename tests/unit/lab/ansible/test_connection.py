from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure  # type: ignore[import-untyped]

from lab.ansible.plugins.connection.lab import Connection

PASS_ON = [sys.executable, "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"]


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    connection = object.__new__(Connection)  # what Ansible's base class wants belongs to a running playbook
    connection._connected = False
    monkeypatch.setattr(Connection.__mro__[1], "exec_command", lambda *_, **__: None)
    monkeypatch.setattr(Connection, "get_option", lambda _self, name: {"enter": PASS_ON}[name])
    return connection


def test_a_command_runs_where_the_prefix_leads(connection: Any) -> None:
    code, output, error = connection.exec_command("cat; echo no >&2; exit 3", b"in\0put")
    assert (code, output, error) == (3, b"in\0put", b"no\n")


def test_without_input_there_is_none(connection: Any) -> None:
    assert connection.exec_command("cat") == (0, b"", b"")


def test_files_go_both_ways(connection: Any, tmp_path: Path) -> None:
    here, there, back = tmp_path / "here", tmp_path / "it's there", tmp_path / "back"
    here.write_bytes(bytes(range(256)))
    connection.put_file(str(here), str(there))
    connection.fetch_file(str(there), str(back))
    assert there.read_bytes() == back.read_bytes() == here.read_bytes()


def test_a_file_that_cannot_be_written_or_read_fails(connection: Any, tmp_path: Path) -> None:
    missing = str(tmp_path / "no/folder")
    with pytest.raises(AnsibleConnectionFailure, match="cannot write"):
        connection.put_file(__file__, missing)
    with pytest.raises(AnsibleConnectionFailure, match="cannot read"):
        connection.fetch_file(missing, str(tmp_path / "back"))


def test_it_connects_and_closes_without_doing_anything(connection: Any) -> None:
    assert connection._connect() is connection
    assert connection._connected
    connection.close()
    assert not connection._connected
