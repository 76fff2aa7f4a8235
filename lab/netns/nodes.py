"""Nodes that are network namespaces of this machine: all of `netns`, and those of other backends outside guests."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Protocol

from lab.backend import Completed
from lab.deadline import Deadline
from lab.errors import LabTimeoutError
from lab.netns import build, namespaces
from lab.netns.capture import NamespaceCapture
from lab.process import LocalProcess
from lab.topology import PACKET_POINTS, Node, Point, Topology

_ETC: Final = (
    "alternatives",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "localtime",
    "passwd",
    "protocols",
    "services",
)
"""The files of this machine's /etc that a node gets copies of: enough for the C library and for nft or iptables."""

_ASK_TIMEOUT: Final = 2.0  # seconds


class Spawn(Protocol):
    """Starts a command on this machine that ends with the laboratory."""

    def __call__(self, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start the command."""
        ...


class NamespaceNodes:
    """See `lab.backend.Place`.

    Args:
        topology: The plan.
        prefix: What the namespaces' names begin with.
        directory: The laboratory's folder, which contains each node's /etc and /run.
        nodes: Which nodes are here.
        spawn: Starts a command on this machine.
    """

    def __init__(
        self, topology: Topology, prefix: str, directory: Path, *, nodes: Collection[Node], spawn: Spawn
    ) -> None:
        self.nodes = frozenset(nodes)
        self.directory = str(directory)
        self._topology = topology
        self._prefix = prefix
        self._folder = directory
        self._spawn = spawn

    def namespace(self, node: Node) -> str:
        """Return the name of a node's namespace."""
        return build.namespace(self._prefix, node)

    # -- up and down ---------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Create the namespaces, their programs' files in /etc and /run, and the cables between them."""
        for node in self.nodes:
            self._furnish(node)
        build.raise_network(self._topology, self._prefix, self.nodes)

    def wait_for_links(self, deadline: Deadline) -> None:
        """Wait until every cable has a carrier.

        Raises:
            LabTimeoutError: One has none.
        """
        deadline.poll(lambda: build.links_are_up(self._topology, self._prefix, self.nodes), "the links to come up")

    def _furnish(self, node: Node) -> None:
        etc, run = self._folder / node / "etc", self._folder / node / "run"
        etc.mkdir(parents=True)
        run.mkdir()
        (run / "netns").mkdir()
        for name in _ETC:
            source = Path("/etc") / name
            if source.is_dir():
                shutil.copytree(source, etc / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, etc / name)
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        (etc / "resolv.conf").write_text(self._topology.resolver_of(node))

    def down(self) -> None:
        """Remove the namespaces and everything in them. Idempotent."""
        build.remove_network(self._prefix)

    def leftovers(self) -> list[str]:
        """Describe namespaces and processes left in them, in words."""
        found = []
        for node in self._topology.nodes:
            name = self.namespace(node)
            found += [f"process {pid} in {name}" for pid in namespaces.processes_in(name)]
            if namespaces.exists(name):
                found.append(f"namespace {name}")
        return found

    # -- what every place can do ---------------------------------------------------------------------------------------

    def enter(self, node: Node) -> list[str]:
        """Return the prefix that makes a local command run in a node."""
        return [*namespaces.own_root(), *build.enter(self._prefix, node, str(self._folder / node))]

    def translate(self, argv: Sequence[str]) -> list[str]:
        """Return the command unchanged: a namespace sees this machine's files."""
        return list(argv)

    def run(self, node: Node, argv: Sequence[str], *, stdin: bytes, deadline: Deadline) -> Completed:
        """Run a command in a node to its end."""
        remaining = deadline.remaining
        try:
            done = subprocess.run(
                [*self.enter(node), *argv], input=stdin, capture_output=True, timeout=remaining, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabTimeoutError(
                f"waited {remaining:.1f} s for {' '.join(argv)} in {node}", why="it did not end"
            ) from None
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool) -> LocalProcess:
        """Start a command in a node."""
        return self._spawn([*self.enter(node), *argv], name=name, stdin=stdin)

    def processes_in(self, node: Node) -> list[int]:
        """Identifiers of the processes that run in a node."""
        return namespaces.processes_in(self.namespace(node))

    def bring(self, path: Path) -> str:
        """Return the path unchanged: a namespace sees this machine's files."""
        return str(path)

    def capture(self, point: Point, deadline: Callable[[float], Deadline]) -> NamespaceCapture:
        """Start to capture."""
        del deadline  # nothing to wait for
        node, interface = PACKET_POINTS[point]
        return NamespaceCapture(point, self.namespace(node), interface)

    def ask(self, node: Node, path: str, request: bytes, deadline: Deadline) -> bytes | None:
        """Return a node service's answer on a Unix socket below /run, or None if it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(min(_ASK_TIMEOUT, deadline.remaining))
                sock.connect(str(self._folder / node / "run" / path))
                sock.sendall(request)
                with sock.makefile("rb") as answer:
                    return answer.read()
        except OSError:
            return None
