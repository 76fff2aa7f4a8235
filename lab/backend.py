"""What every laboratory can do: the interface between the behaviour suite and the backends.

A backend brings the topology up, starts the production Relay and Enclave in it, runs commands in its machines, watches
its capture points and injects faults at the vsock point. `lab.netns` builds it from network namespaces, `lab.qemu` from
guests.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

from lab.deadline import Deadline
from lab.errors import LabError, Unavailable
from lab.filters import PacketFilter
from lab.nsm.client import NsmControl
from lab.process import LocalProcess
from lab.topology import Node, Point, Service, Topology
from lab.watch.capture import PacketCapture
from lab.watch.tap import TapControl
from wgvsock.addresses import Port


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        """Return the command itself if it succeeded.

        Raises:
            LabError: It failed.
        """
        if self.exit_code != 0:
            raise LabError(
                f"{' '.join(self.argv)} ended with {self.exit_code}",
                why=self.stderr.decode(errors="replace").strip()[-2000:],
            )
        return self


class Process(Protocol):
    """A command that keeps running in one of the machines. Its standard error goes to its log."""

    name: str
    log: Path

    @property
    def pid(self) -> int:
        """Process ID in its own machine."""
        ...

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def signal(self, signum: int) -> None:
        """Send a signal to the command itself."""
        ...

    def wait_for_line(self, wanted: str, deadline: Deadline) -> str:
        """Return the first line of its output that contains some text.

        Raises:
            LabError: It ended without writing it.
            LabTimeoutError: It has not written it yet.
        """
        ...

    def kill(self) -> None:
        """Send SIGKILL to it and everything it started, and wait until it is gone. Idempotent."""
        ...

    def wait(self, deadline: Deadline) -> int:
        """Wait for its end, and return its exit code.

        Raises:
            LabTimeoutError: It is still running.
        """
        ...

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, if it was spawned with one."""
        ...

    def output(self) -> str:
        """Return its output so far, standard output and error together."""
        ...


class Place(Protocol):
    """Runs some of a laboratory's nodes: namespaces of this machine, or a guest. A backend is composed of them."""

    directory: str
    """The laboratory's folder as seen on the place's machine."""

    def enter(self, node: Node) -> list[str]:
        """See `Backend.enter`."""
        ...

    def translate(self, argv: Sequence[str]) -> list[str]:
        """See `Backend.translate`."""
        ...

    def run(self, node: Node, argv: Sequence[str], *, stdin: bytes, deadline: Deadline) -> Completed:
        """See `Backend.run`."""
        ...

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool) -> LocalProcess:
        """See `Backend.spawn`."""
        ...

    def processes_in(self, node: Node) -> list[int]:
        """See `Backend.processes_in`."""
        ...

    def bring(self, path: Path) -> str:
        """Make a file of the laboratory's folder available in the place, and return its path there."""
        ...

    def capture(self, point: Point, deadline: Callable[[float], Deadline]) -> PacketCapture:
        """See `Backend.capture`. The deadlines are in the place's time."""
        ...

    def ask(self, node: Node, path: str, request: bytes, deadline: Deadline) -> bytes | None:
        """Return a node service's answer on a Unix socket, by its path below /run, or None if it does not answer."""
        ...


class Backend(Protocol):
    """One laboratory. `up` comes first and `down` last. Everything between can be done in any order and repeatedly."""

    name: str
    takes: str
    """How long it takes to start, in words. docs/lab.md has measurements."""
    topology: Topology
    directory: Path
    """Sockets, configurations, logs. `down` removes them, which is why `keep_artifacts` exists."""
    tap: TapControl
    """The vsock point: recording and faults."""
    nsm: NsmControl
    """The settings of the fake Nitro Security Module."""
    root_sha256: str
    """Fingerprint of the laboratory's attestation root, hex."""
    scale: float
    """How much longer everything takes than natively, measured where processors are emulated."""
    clock_error: float
    """Seconds by which capture times of different machines may differ, or 0 if all share one clock."""
    enclave_measurements: Mapping[str, str]
    """``PCR0`` and so on of the enclave's image, hex."""
    filter: PacketFilter
    """The packet filter tools that the Relay can use."""

    @property
    def processors(self) -> str:
        """What runs the machines' programs, and why: this machine's processors, through KVM, or emulated ones."""
        ...

    @property
    def nsm_device(self) -> str:
        """What serves the Enclave's Nitro Security Module device."""
        ...

    @property
    def own_processes(self) -> tuple[str, ...]:
        """Names of the processes that only `up` can start. Without them nothing can be repaired."""
        ...

    @property
    def entropy_log(self) -> Path:
        """The entropy that the Enclave drew (`lab.watch.opener`), a file on this machine."""
        ...

    def __init__(self, identity: str) -> None: ...

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """Return None if this machine can run the backend, otherwise the reason."""
        ...

    @classmethod
    def prepare(cls) -> None:
        """Download and build what `up` needs and what outlives it, unless it exists.

        Raises:
            LabError: It is not available.
        """
        ...

    def up(self) -> None:
        """Start the machines, cables, servers, the signer and the tap.

        Raises:
            LabError: A step failed. What was started stays until `down`, for inspection.
        """
        ...

    def down(self) -> None:
        """Remove everything. Idempotent, and works after a failed `up`."""
        ...

    def leftovers(self) -> list[str]:
        """Describe what is left of this laboratory, in words. Empty after `down`."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        ...

    @classmethod
    def attach(cls, state: Mapping[str, Any]) -> Self:
        """Return the laboratory that another process started."""
        ...

    def detach(self) -> None:
        """Release the machines, which keep running, for another process. The next call takes hold of them again."""
        ...

    def process(self, name: str) -> Process | None:
        """Return the newest running process of a name (``relay``, ``enclave``, …)."""
        ...

    def enter(self, node: Node) -> list[str]:
        """Return the prefix that makes a local command run in a machine of the laboratory."""
        ...

    def translate(self, node: Node, argv: Sequence[str]) -> list[str]:
        """Translate a local command into a machine of the laboratory: its interpreter, the checkout's files."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline, scaled for this backend."""
        ...

    def run(
        self, node: Node, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> Completed:
        """Run a command in a machine to its end. The default deadline is 10 s.

        Raises:
            LabTimeoutError: It did not end, and was killed.
        """
        ...

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool = False) -> Process:
        """Start a command in a machine and leave it running, with its output in ``logs/<name>.log``."""
        ...

    def start_server(self, service: Service) -> Process:
        """Start the server of a node as ``<node>-server``, without waiting until it listens. `up` starts all."""
        ...

    def with_filter(self, argv: Sequence[str]) -> list[str]:
        """Wrap a command of the pod so that only the chosen packet filter works."""
        ...

    def relay_config(self) -> dict[str, Any]:
        """Return a complete relay configuration for this laboratory, as nested dictionaries that tests may change."""
        ...

    def enclave_config(self) -> dict[str, Any]:
        """Return the same for the enclave."""
        ...

    def write_config(self, node: Node, config: Mapping[str, Any]) -> str:
        """Write the configuration of a node's service, and return its path in the node."""
        ...

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> Process:
        """Start the production Relay in the pod.

        Args:
            config: Default: `relay_config`.
            timings: Fields of `wgvsock.wireguard.Timings` that differ from the whitepaper's.
        """
        ...

    def start_enclave(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        timings: Mapping[str, float] | None = None,
        application: Sequence[str] | None = None,
    ) -> Process:
        """Start the production Enclave. Arguments as for `start_relay`, and the application that replaces the lab's."""
        ...

    def start_neighbour(self, node: Node) -> Process:
        """Start the Enclave of an additional machine of the plan. Only `netns` has such plans."""
        ...

    def status(self, node: Node) -> dict[str, Any] | None:
        """Return the status of the Relay (in the pod) or the Enclave, or None while it does not answer."""
        ...

    def processes_in(self, node: Node) -> list[int]:
        """Return the process IDs, in their machine, of a node's processes."""
        ...

    def dial_enclave(self, port: Port) -> socket.socket:
        """Open a stream to a vsock port of the enclave that bypasses the Relay and the tap, as the parent instance can.

        Raises:
            TransportError: Nothing listens there.
        """
        ...

    def divert(self, port: Port, listener: Path | None) -> None:
        """Redirect the next connections to a vsock port to a Unix socket of this process. None: to the enclave."""
        ...

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture at one of `PACKET_POINTS`.

        Raises:
            LabError: The interface does not exist.
        """
        ...

    def refresh_logs(self) -> None:
        """Update the logs in this machine's folder."""
        ...

    def keep_artifacts(self, folder: Path) -> None:
        """Copy logs, configurations and the recording of the vsock point to a folder that outlives the laboratory."""
        ...
