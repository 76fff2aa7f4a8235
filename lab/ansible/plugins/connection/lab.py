"""Ansible's connection to a machine of the laboratory: a local command that runs another one there.

``ip netns exec`` enters a namespace, and a request channel enters a guest (`lab.qemu.shell`). The inventory says which
(`lab.ansible.inventory`). Nothing has to listen in the machine, and no network is used.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Final

from ansible.errors import AnsibleConnectionFailure  # type: ignore[import-untyped]
from ansible.plugins.connection import ConnectionBase  # type: ignore[import-untyped]

DOCUMENTATION = """
name: lab
short_description: run commands in a machine of the laboratory
description: Runs commands in a machine of the laboratory through the backend's own means.
author: wgvsock
version_added: historical
options:
  enter:
    description: The command of this machine to put in front of one that is to run in the other.
    type: list
    elements: str
    required: true
    vars:
      - name: lab_enter
"""

CHECKOUT: Final = Path(__file__).parents[4]
"""The folder in which ``python -m lab.…`` finds its modules."""


class Connection(ConnectionBase):  # type: ignore[misc]
    """Runs a separate process for each command. Nothing is kept open."""

    transport = "lab"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a shell command, and return exit code, standard output and standard error."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        argv = [*self.get_option("enter"), "/bin/sh", "-c", cmd]
        done = subprocess.run(argv, input=in_data or b"", capture_output=True, cwd=CHECKOUT, check=False)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a local file to the machine."""
        code, _, error = self.exec_command(f"cat > {shlex.quote(out_path)}", Path(in_path).read_bytes())
        if code != 0:
            raise AnsibleConnectionFailure(f"cannot write {out_path}: {error.decode(errors='replace')}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of the machine to this one."""
        code, content, error = self.exec_command(f"cat {shlex.quote(in_path)}")
        if code != 0:
            raise AnsibleConnectionFailure(f"cannot read {in_path}: {error.decode(errors='replace')}")
        Path(out_path).write_bytes(content)

    def close(self) -> None:
        """Nothing to close."""
        self._connected = False
