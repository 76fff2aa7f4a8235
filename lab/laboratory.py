"""The common part of every backend: this machine's part of a laboratory, and commands run where their node is.

On this machine are the folder, the fake security module's signer, the tap and their logs. A `lab.backend.Place` knows
what a node is made of. A backend says which place a node is in, and what the vsock between two places is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self

from lab import config as configurations
from lab.backend import Completed, Place
from lab.deadline import PATIENCE, Deadline
from lab.dial import dial_now
from lab.errors import LabError
from lab.filters import PacketFilter, asked_for
from lab.guest.command import alone
from lab.guest.packets import write_pcap
from lab.nsm.client import NsmControl
from lab.nsm.wire import control_path
from lab.process import LocalProcess
from lab.topology import PACKET_POINTS, TOPOLOGY, Node, Point, Service, Topology
from lab.watch.capture import PacketCapture
from lab.watch.tap import TapControl, TapRoute
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT, Port, StreamAddress, UnixAddress
from wgvsock.runtime.directory import RUNTIME_DIRECTORY

LAB: Final = Path(__file__).parent
WGVSOCK: Final = str(Path(sys.executable).with_name("wgvsock"))
PORTS: Final = (WIREGUARD_PORT, PROVISIONING_PORT)

_KEPT_CAPTURES: Final = 8
"""The newest captures, for `keep_artifacts`: two observations of all four interfaces."""

_READ_TIMEOUT: Final = 10.0  # seconds
_STATUS_REQUEST: Final = b"GET /status HTTP/1.0\r\n\r\n"


class Here(Place, Protocol):
    """The namespaces of this machine, which are removed with the laboratory."""

    def down(self) -> None:
        """Remove them, and what is in them. Idempotent."""
        ...

    def leftovers(self) -> list[str]:
        """Describe what is left of them, in words."""
        ...


class Laboratory(ABC):
    """See `lab.backend.Backend`.

    Args:
        identity: A few letters that tell this laboratory from others on the machine.
        topology: The plan.
        directory: Where it keeps its files. By default a new temporary directory.
    """

    name: str
    takes: str
    scale = 1.0
    clock_error = 0.0

    tap: TapControl
    nsm: NsmControl
    here: Here
    """The place of the nodes that are not in a guest."""

    def __init__(self, identity: str, *, topology: Topology = TOPOLOGY, directory: Path | None = None) -> None:
        self.topology = topology
        self.prefix = f"wgv-{identity}"
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self.enclave_measurements: Mapping[str, str] = {}
        self.root_sha256 = ""
        self.filter = asked_for()
        self._processes: list[LocalProcess] = []
        self._captures: deque[PacketCapture] = deque(maxlen=_KEPT_CAPTURES)

    def place_of(self, node: Node) -> Place:
        """Return the place of a node."""
        del node
        return self.here

    @property
    def own_processes(self) -> tuple[str, ...]:
        """Return the vsock point and the signer."""
        return ("signer", "tap")

    # -- staying up ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        return {
            "prefix": self.prefix,
            "filter": self.filter,
            "directory": str(self.directory),
            "root_sha256": self.root_sha256,
            "enclave_measurements": dict(self.enclave_measurements),
            "processes": [process.describe() for process in self._processes],
        }

    @classmethod
    def attach(cls, state: Mapping[str, Any]) -> Self:
        """Return the laboratory that another process started."""
        laboratory = cls(state["prefix"].removeprefix("wgv-"), directory=Path(state["directory"]))
        laboratory.adopt(state)
        laboratory._connect_controls()
        return laboratory

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over what another process of ours has started."""
        self.filter = PacketFilter(state["filter"])
        self.root_sha256 = state["root_sha256"]
        self.enclave_measurements = state["enclave_measurements"]
        self._processes = [LocalProcess.adopt(description) for description in state["processes"]]

    def process(self, name: str) -> LocalProcess | None:
        """Return the newest running process of a name."""
        for process in reversed(self._processes):
            if process.name == name and process.poll() is None:
                return process
        return None

    # -- up and down ---------------------------------------------------------------------------------------------------

    def _start_services(self, signer: LocalProcess) -> None:
        """Start the servers and the tap, and wait for them and for the signer, which is already running."""
        starting = [self.start_server(service) for service in self.topology.services]
        for process in (*starting, self._start_tap()):
            process.wait_for_line("ready", self.deadline(20))
        announced = json.loads(signer.wait_for_line("root_sha256", self.deadline(20)))
        self.root_sha256 = announced["root_sha256"]
        self.enclave_measurements = announced["pcrs"]

    def start_server(self, service: Service) -> LocalProcess:
        """Start the server of a node."""
        return self.spawn(service.node, self.server_argv(service), name=f"{service.node}-server")

    def server_argv(self, service: Service) -> list[str]:
        """Return the command of a node's server."""
        argv = serving(service, service.node)
        if service.dns_port is not None:
            argv += ["--dns-port", str(service.dns_port), "--zone", self.topology.zone]
            argv += ["--a", self.topology.external4, "--aaaa", self.topology.external6]
        return argv

    @property
    def signer_socket(self) -> Path:
        """Return the address at which the signer answers for the enclave."""
        return self.directory / "nsm/enclave.sock"

    def _start_signer(self, *options: str) -> LocalProcess:
        nsm = self.directory / "nsm"
        argv = ["--socket", str(self.signer_socket), "--control", control_path(nsm), "--state-dir", str(nsm)]
        return self.spawn_here([sys.executable, "-m", "lab.nsm.server", *argv, *options], name="signer")

    def _connect_controls(self) -> None:
        self.tap = TapControl(UnixAddress(str(self.directory / "tap.sock")), self.directory / "vsock.pcap")
        self.nsm = NsmControl(control_path(self.directory / "nsm"))

    def _taps(self) -> Iterable[TapControl]:
        return [self.tap] if hasattr(self, "tap") else []

    def down(self) -> None:
        """Kill, unmount, remove."""
        for capture in self._captures:
            with contextlib.suppress(LabError):
                capture.close()
        for process in reversed(self._processes):
            process.kill()
        for tap in self._taps():
            tap.close()
        self.here.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Processes, namespaces and files of this laboratory."""
        found = [f"process {p.pid} ({p.name})" for p in self._processes if p.poll() is None]
        found += self.here.leftovers()
        if self.directory.exists():
            found.append(f"folder {self.directory}")
        return found

    def keep_artifacts(self, folder: Path) -> None:
        """Copy logs, configurations, captures and the recording of the vsock point."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.directory / "logs", folder / "logs", dirs_exist_ok=True)
        for path in (*self.directory.glob("*.toml"), *self.directory.glob("vsock*.pcap")):
            shutil.copy(path, folder)
        for number, capture in enumerate(self._captures):
            with contextlib.suppress(LabError):
                if packets := capture.packets():
                    with (folder / f"capture-{number}-{capture.point}.pcap").open("wb") as stream:
                        write_pcap(stream, packets, packets[0].linktype)

    # -- the vsock -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _relay_side(self, port: Port) -> StreamAddress:
        """Return the address on which the tap listens for the Relay."""

    @abstractmethod
    def _enclave_side(self, port: Port) -> StreamAddress:
        """Return the address that the tap dials."""

    def relay_address(self, port: Port) -> StreamAddress:
        """Return the address that the Relay dials."""
        return self._relay_side(port)

    def enclave_address(self, port: Port) -> StreamAddress:
        """Return the address of `dial_enclave`, for a program on this machine that dials itself."""
        return self._enclave_side(port)

    def _start_tap(self) -> LocalProcess:
        routes = [TapRoute(port, self._relay_side(port), self._enclave_side(port)) for port in PORTS]
        return self._start_tap_here(routes, "tap", "vsock.pcap")

    def _start_tap_here(self, routes: Sequence[TapRoute], name: str, recording: str) -> LocalProcess:
        """Start a tap on this machine, with a control socket named after it."""
        argv = ["--recording", str(self.directory / recording), "--control", f"unix:{self.directory}/{name}.sock"]
        return self.spawn_here([sys.executable, "-m", "lab.watch.tap", *argv, *map(str, routes)], name=name)

    def dial_enclave(self, port: Port) -> socket.socket:
        """Open a stream to a vsock port of the enclave, bypassing the tap."""
        return self._dial(self._enclave_side(port))

    def _dial(self, address: StreamAddress) -> socket.socket:
        return dial_now(address, timeout=self.deadline(_READ_TIMEOUT).seconds)

    def divert(self, port: Port, listener: Path | None) -> None:
        """Redirect the Relay's next connections."""
        self.tap.reroute(port, UnixAddress(str(listener)) if listener is not None else self._enclave_side(port))

    # -- commands ------------------------------------------------------------------------------------------------------

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline in the machines' time."""
        return Deadline(seconds, scale=max(self.scale, PATIENCE))

    def enter(self, node: Node) -> list[str]:
        """Return the prefix that makes a local command run in a node."""
        return self.place_of(node).enter(node)

    def translate(self, node: Node, argv: Sequence[str]) -> list[str]:
        """Translate a local command into a node."""
        return self.place_of(node).translate(argv)

    def run(
        self, node: Node, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> Completed:
        """Run a command in a node."""
        return self.place_of(node).run(node, argv, stdin=stdin, deadline=deadline or self.deadline(10))

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start a command in a node."""
        return self.place_of(node).spawn(node, argv, name=name, stdin=stdin)

    def spawn_here(self, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start a command on this machine, outside the nodes. It ends with the laboratory."""
        process = LocalProcess.start(name, argv, log=self.directory / f"logs/{name}.log", stdin=stdin)
        self._processes.append(process)
        return process

    def processes_in(self, node: Node) -> list[int]:
        """Identifiers of the processes that run in a node."""
        return self.place_of(node).processes_in(node)

    def with_filter(self, argv: Sequence[str]) -> list[str]:
        """Wrap a command of the pod so that only the chosen packet filter works."""
        return self.filter.wrap(argv, f"{self.place_of(Node.POD).directory}/filter")

    # -- Relay and Enclave ---------------------------------------------------------------------------------------------

    def relay_config(self) -> dict[str, Any]:
        """A relay.toml for this laboratory."""
        return configurations.relay_config(
            self.topology,
            enclave_address=str(self.relay_address(WIREGUARD_PORT)),
            provisioning_address=str(self.relay_address(PROVISIONING_PORT)),
            root_sha256=self.root_sha256,
            pcrs=self.enclave_measurements,
            runtime_directory=RUNTIME_DIRECTORY,
        )

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Start the production Relay in the pod."""
        path = self.write_config(Node.POD, config if config is not None else self.relay_config())
        return self.spawn(Node.POD, self.with_filter(self._relay_command(path, timings)), name="relay")

    def _relay_command(self, config: str, timings: Mapping[str, float] | None) -> list[str]:
        """The production command has no option for timings: with some, `lab.programs.relay` replaces it."""
        if timings:
            program = [sys.executable, "-m", "lab.programs.relay"]
            return [*program, "--config", config, "--timings", json.dumps(timings)]
        return [WGVSOCK, "relay", "run", "--config", config]

    def start_neighbour(self, node: Node) -> LocalProcess:
        """Refuse, because no plan of this backend has one.

        Raises:
            LabError: Always.
        """
        raise LabError(f"{self.name} has no machine {node}", why="its plan has one enclave", fix="LAB=netns")

    def write_config(self, node: Node, config: Mapping[str, Any]) -> str:
        """Write the configuration of a node's service, and return its path in the node.

        A copy stays in the laboratory's folder, for the artifacts.
        """
        path = self.directory / f"{'relay' if node is Node.POD else node}.toml"
        path.write_text(configurations.to_toml(config))
        return self.place_of(node).bring(path)

    # -- watching ------------------------------------------------------------------------------------------------------

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture."""
        node, _ = PACKET_POINTS[point]
        capture = self.place_of(node).capture(point, self.deadline)
        self._captures.append(capture)
        self.clock_error = max(self.clock_error, 2 * capture.clock_error)  # two machines deviate in opposite directions
        return capture

    def status(self, node: Node) -> dict[str, Any] | None:
        """Return the status of the Relay (in the pod) or the Enclave, or None while it does not answer."""
        role = "relay" if node is Node.POD else "enclave"
        answer = self.place_of(node).ask(node, f"wgvsock/{role}.sock", _STATUS_REQUEST, self.deadline(5))
        _, _, body = (answer or b"").partition(b"\r\n\r\n")
        return configurations.with_first_enclave(json.loads(body)) if body else None


def serving(service: Service, name: str) -> list[str]:
    """Return the command of a server that answers with a name."""
    ports = ["--echo-port", str(service.echo_port), "--http-port", str(service.http_port)]
    return [*alone("servers"), "--name", name, *ports]
