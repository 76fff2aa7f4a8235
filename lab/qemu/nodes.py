"""Nodes in a guest: the guest itself, if it is the enclave, or its namespaces."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Protocol

from lab.backend import Completed
from lab.deadline import Deadline
from lab.errors import LabError
from lab.image.build import APPLICATION_ROOT, PYTHON
from lab.laboratory import LAB
from lab.netns import build
from lab.qemu.capture import GuestCapture
from lab.qemu.channel import GuestProcess
from lab.qemu.machine import SHELL_SOCKET, Machine
from lab.topology import PACKET_POINTS, Node, Point, Topology

GUEST_DIRECTORY: Final = "/lab"  # each node has its own /run

_PROCESSES_SCRIPT: Final = """
import contextlib, os
found = []
for name in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline") as command:
        if command.read(1) and int(name) != os.getpid():
            found.append(int(name))
print(found)
"""
_FURNISH: Final = 'for folder; do mkdir -p "$folder/run/netns" && cp -a /etc "$folder/etc" || exit; done'


class Spawn(Protocol):
    """Starts a command in a guest that ends with the laboratory."""

    def __call__(self, machine: Machine, argv: Sequence[str], *, name: str, stdin: bool = False) -> GuestProcess:
        """Start the command."""
        ...


class GuestNodes:
    """See `lab.backend.Place`.

    Args:
        machine: The guest.
        prefix: What the namespaces' names begin with.
        nodes: Which nodes are namespaces of the guest.
        spawn: Starts a command in the guest.
        logs: Folder of this machine for the logs.
    """

    directory = GUEST_DIRECTORY

    def __init__(self, machine: Machine, prefix: str, *, nodes: Collection[Node], spawn: Spawn, logs: Path) -> None:
        self.machine = machine
        self.nodes = frozenset(nodes)
        self._prefix = prefix
        self._spawn = spawn
        self._logs = logs

    def up(self, topology: Topology, deadline: Callable[[float], Deadline]) -> None:
        """Create the namespaces, an /etc and a /run for each, and the cables between them."""
        folders = [f"{GUEST_DIRECTORY}/{node}" for node in sorted(self.nodes)]
        # The guest's /etc has everything that they need.
        self.machine.run(["sh", "-c", _FURNISH, "sh", *folders]).check()
        for node in self.nodes:
            path = f"{GUEST_DIRECTORY}/{node}/etc/resolv.conf"
            self.machine.channel().write_file(path, topology.resolver_of(node).encode())
        argv = [PYTHON, "-m", "lab.netns.build", "up", "--prefix", self._prefix]
        self.machine.run([*argv, "--nodes", ",".join(sorted(self.nodes))], deadline=deadline(20)).check()

    def enter(self, node: Node) -> list[str]:
        """Return the prefix that makes a local command run in a node."""
        shell = [sys.executable, "-m", "lab.qemu.shell", str(self.machine.directory / SHELL_SOCKET), "--"]
        return [*shell, *self._enter_in_guest(node)]

    def _enter_in_guest(self, node: Node) -> list[str]:
        if node not in self.nodes:
            return []
        return build.enter(self._prefix, node, f"{GUEST_DIRECTORY}/{node}")

    def translate(self, argv: Sequence[str]) -> list[str]:
        """Translate a local command into the guest."""
        return in_guest(argv)

    def run(self, node: Node, argv: Sequence[str], *, stdin: bytes, deadline: Deadline) -> Completed:
        """Run a command in a node to its end."""
        return self.machine.run([*self._enter_in_guest(node), *in_guest(argv)], stdin=stdin, deadline=deadline)

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool) -> GuestProcess:
        """Start a command in a node."""
        return self._spawn(self.machine, [*self._enter_in_guest(node), *in_guest(argv)], name=name, stdin=stdin)

    def processes_in(self, node: Node) -> list[int]:
        """Return the process IDs of a node's processes, for the guest itself without those of the agent."""
        if node in self.nodes:
            done = self.machine.run(["ip", "netns", "pids", build.namespace(self._prefix, node)])
            return [int(pid) for pid in done.check().stdout.split()]
        done = self.machine.run([PYTHON, "-I", "-S", "-c", _PROCESSES_SCRIPT])
        return [pid for pid in json.loads(done.check().stdout) if pid != 1]

    def bring(self, path: Path) -> str:
        """Copy a local file into the guest, and return its path there."""
        there = f"{GUEST_DIRECTORY}/{path.name}"
        self.machine.channel().write_file(there, path.read_bytes())
        return there

    def capture(self, point: Point, deadline: Callable[[float], Deadline]) -> GuestCapture:
        """Start to capture."""
        node, interface = PACKET_POINTS[point]
        # Never an earlier one's: otherwise both would read the output of the two.
        name = f"capture-{secrets.token_hex(4)}"
        records = f"{GUEST_DIRECTORY}/{name}"
        process = self.machine.spawn(
            [*self._enter_in_guest(node), PYTHON, "-S", "-m", "lab.guest.recorder", interface],
            name=f"capture at {point}",
            log=self._logs / f"{name}.log",
            stdout=records,
            environment={"PYTHONPATH": f"/{APPLICATION_ROOT}"},
        )
        return GuestCapture(point, self.machine, process, records, deadline)

    def ask(self, node: Node, path: str, request: bytes, deadline: Deadline) -> bytes | None:
        """Return a node service's answer on a Unix socket below /run, or None if it does not answer."""
        run = f"{GUEST_DIRECTORY}/{node}/run" if node in self.nodes else "/run"
        try:
            return self.machine.channel().ask(f"{run}/{path}", request, deadline)
        except LabError:
            return None


def in_guest(argv: Sequence[str]) -> list[str]:
    """Translate a local command, with interpreter, entry point and the checkout's files as in the guest."""
    checkout = str(LAB.parent) + os.sep
    places = {sys.executable: PYTHON, str(Path(sys.executable).with_name("wgvsock")): "wgvsock"}
    translated = [places.get(word, word) for word in argv]
    return [
        f"/{APPLICATION_ROOT}/{word.removeprefix(checkout)}" if word.startswith(checkout) else word
        for word in translated
    ]
