"""What a laboratory can do, whatever it is made of: the seam between the behaviour suite and the backends.

A backend raises the topology, starts the production Relay and Enclave in it, runs commands in its machines, watches
its capture points and injects faults at the vsock point. `lab.netns` makes it of network namespaces, `lab.qemu` of
guests.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

from lab.capture import CapturedPacket
from lab.deadline import Deadline
from lab.nsm.client import NsmControl
from lab.tap import TapControl
from lab.topology import Node, Point, Service, Topology
from wgvsock.addresses import Port


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why this machine cannot run a backend: something is not there, or is there and not ours to use."""

    kind: Literal["missing", "forbidden"]
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.fix})"


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        """Itself, if the command succeeded.

        Raises:
            LabError: It did not.
        """
        if self.exit_code != 0:
            from lab.errors import LabError

            raise LabError(
                f"{' '.join(self.argv)} ended with {self.exit_code}",
                why=self.stderr.decode(errors="replace").strip()[-2000:],
            )
        return self


class Process(Protocol):
    """A command that runs on in one of the machines; its standard error goes to its log."""

    name: str
    log: Path

    @property
    def pid(self) -> int:
        """Process identifier in its own machine."""
        ...

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def signal(self, signum: int) -> None:
        """Send a signal to the command itself."""
        ...

    def wait_for_line(self, wanted: str, deadline: Deadline) -> str:
        """The first line of its output that contains some text.

        Raises:
            LabError: It ended without writing it.
            LabTimeoutError: It has not written it yet.
        """
        ...

    def kill(self) -> None:
        """SIGKILL for it and everything it started, and wait until it is gone; idempotent."""
        ...

    def wait(self, deadline: Deadline) -> int:
        """Its exit code.

        Raises:
            LabTimeoutError: It still runs.
        """
        ...

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, when it was spawned with one."""
        ...

    def output(self) -> str:
        """What it has written so far, standard output and error together."""
        ...


class PacketCapture(ABC):
    """A running capture at one interface."""

    point: Point

    @abstractmethod
    def packets(self) -> list[CapturedPacket]:
        """What has passed since it was started, oldest first; the list only ever grows."""

    @abstractmethod
    def close(self) -> None:
        """Stop; what was captured can still be read; idempotent."""

    def wait_for(self, wanted: Callable[[CapturedPacket], bool], deadline: Deadline, what: str) -> CapturedPacket:
        """The first packet that is wanted.

        Raises:
            LabTimeoutError: None came.
        """
        seen = 0

        def look() -> CapturedPacket | None:
            nonlocal seen
            packets = self.packets()
            while seen < len(packets):
                seen += 1
                if wanted(packets[seen - 1]):
                    return packets[seen - 1]
            return None

        return deadline.poll(look, what)


class Backend(Protocol):
    """One laboratory. `up` first, `down` last; everything between can be done in any order and again."""

    name: str
    topology: Topology
    directory: Path
    """Sockets, configurations, logs; removed by `down`, which is why `keep_artifacts` exists."""
    tap: TapControl
    """The vsock point: recording and faults."""
    nsm: NsmControl
    """The fake Nitro Security Module's knobs."""
    root_sha256: str
    """Fingerprint of the laboratory's attestation root, hex."""
    scale: float
    """How much longer everything takes than natively; measured where processors are emulated."""
    clock_error: float
    """Seconds by which times of captures in different machines may be apart; 0 where all have one clock."""
    enclave_measurements: Mapping[str, str]
    """``PCR0`` and so on of the image in the enclave, hex."""

    @property
    def processors(self) -> str:
        """What runs the machines' programs, and why: this machine's processors, through KVM, or emulated ones."""
        ...

    @property
    def nsm_device(self) -> str:
        """What the Enclave has for a Nitro Security Module's device."""
        ...

    @property
    def own_processes(self) -> tuple[str, ...]:
        """Names of the processes that only `up` can start; without them there is nothing to be mended."""
        ...

    @property
    def entropy_log(self) -> Path:
        """What the Enclave drew (`lab.opener`); a file on this machine."""
        ...

    def __init__(self, identity: str) -> None: ...

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """None where this machine can run the backend."""
        ...

    @classmethod
    def prepare(cls) -> None:
        """Download and build what `up` needs and what outlives it, where it is not there yet.

        Raises:
            LabError: It cannot be had.
        """
        ...

    def up(self) -> None:
        """Raise the machines, cables, servers, the signer and the tap.

        Raises:
            LabError: A step failed; what was raised stays until `down`, to be looked at.
        """
        ...

    def down(self) -> None:
        """Take everything away; idempotent, and works after a failed `up`."""
        ...

    def leftovers(self) -> list[str]:
        """What is still there of this laboratory, in words; empty after `down`."""
        ...

    def state(self) -> dict[str, Any]:
        """What `attach` needs, as JSON values."""
        ...

    @classmethod
    def attach(cls, state: Mapping[str, Any]) -> Self:
        """The laboratory that another process has raised."""
        ...

    def detach(self) -> None:
        """Let go of the machines, which run on, for another process to use them; the next call takes hold again."""
        ...

    def process(self, name: str) -> Process | None:
        """The newest process of a name (``relay``, ``enclave``, …) that still runs."""
        ...

    def enter(self, node: Node) -> list[str]:
        """What to put in front of a command on this machine so that it runs in one of the laboratory's."""
        ...

    def translate(self, node: Node, argv: Sequence[str]) -> list[str]:
        """A command of this machine as it is written in one of the laboratory's: interpreter, checkout's files."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """A deadline in this backend's time."""
        ...

    def run(
        self, node: Node, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> Completed:
        """Run a command in a machine to its end; the default deadline is 10 s.

        Raises:
            LabTimeoutError: It did not end; it is killed.
        """
        ...

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool = False) -> Process:
        """Start a command in a machine and leave it running, with its output in ``logs/<name>.log``."""
        ...

    def start_server(self, service: Service) -> Process:
        """Start the server of a node as ``<node>-server``, without waiting until it listens; `up` starts all."""
        ...

    def relay_config(self) -> dict[str, Any]:
        """A complete relay configuration for this laboratory, as nested dictionaries; change what a test needs."""
        ...

    def enclave_config(self) -> dict[str, Any]:
        """The same for the enclave."""
        ...

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> Process:
        """Start the production Relay in the pod.

        Args:
            config: Default: `relay_config`.
            timings: Fields of `wgvsock.wireguard.Timings` that are to differ from the whitepaper's.
        """
        ...

    def start_enclave(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> Process:
        """Start the production Enclave, with the lab's application in it; arguments as for `start_relay`."""
        ...

    def status(self, node: Node) -> dict[str, Any] | None:
        """What the Relay (in the pod) or the Enclave says of itself; None while it does not answer."""
        ...

    def processes_in(self, node: Node) -> list[int]:
        """Identifiers, in their machine, of the processes that run in a node."""
        ...

    def dial_enclave(self, port: Port) -> socket.socket:
        """A stream to a vsock port of the enclave past the Relay and the tap, as the parent instance can open one.

        Raises:
            TransportError: Nobody listens there.
        """
        ...

    def divert(self, port: Port, listener: Path | None) -> None:
        """Lead the Relay's next connections to a vsock port to a Unix socket of this process; None: to the enclave."""
        ...

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture at one of `PACKET_POINTS`.

        Raises:
            LabError: The interface is not there.
        """
        ...

    def refresh_logs(self) -> None:
        """Bring the logs in this machine's folder up to date."""
        ...

    def keep_artifacts(self, folder: Path) -> None:
        """Copy logs, configurations and what crossed the vsock point to a folder that outlives the laboratory."""
        ...
