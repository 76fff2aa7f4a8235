"""The `netns` backend: the production Relay and Enclave in network namespaces, a Unix stream in place of the vsock.

The enclave's namespace has no cable to anything. Its only way out is a pair of sockets in the file system, which stand
for its vsock ports; the tap sits between them and the Relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from lab import config as configurations
from lab.backend import Completed, PacketCapture, Unavailable
from lab.capture import CapturedPacket, dropped, open_packet_socket, read_packet
from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError
from lab.netns import build, namespaces, privilege
from lab.nsm.client import NsmControl
from lab.process import LocalProcess
from lab.tap import TapControl, TapRoute
from lab.topology import PACKET_POINTS, TOPOLOGY, Node, Point, Service, Topology
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT, Port, StreamAddress, UnixAddress
from wgvsock.transports.sockets import connect_stream

LAB: Final = Path(__file__).parent.parent
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
"""What of this machine's /etc a node gets a copy of: enough for the C library and for nft or iptables."""

_KEPT_CAPTURES: Final = 8
"""The newest captures, for `keep_artifacts`: two observations of all four interfaces."""

_LOCAL_PARENT_CID: Final = 2  # no vsock here, so no CID is ever compared; a QEMU host's


_DIAL_TIMEOUT: Final = 10.0  # seconds


class NamespaceCapture(PacketCapture):
    """A packet socket that stays in the namespace where it was opened; see `lab.backend.PacketCapture`."""

    def __init__(self, point: Point, namespace: str, interface: str) -> None:
        self.point = point
        try:
            self._socket: socket.socket | None = namespaces.inside(namespace, lambda: open_packet_socket(interface))
        except OSError as error:
            raise LabError(f"cannot capture at {interface} of {namespace}", why=str(error)) from None
        self._packets: list[CapturedPacket] = []

    def packets(self) -> list[CapturedPacket]:
        """Every packet since the start.

        Raises:
            LabError: The kernel's buffer was too small, packets are missing.
        """
        self._drain()
        return self._packets

    def _drain(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # ENETDOWN: the interface is gone, and what it carried is here
            while packet := read_packet(self._socket):
                self._packets.append(packet)
        if lost := dropped(self._socket):
            raise LabError(f"the capture lost {lost} packets", why="its buffer was full")

    def close(self) -> None:
        """Take what is there and stop."""
        if self._socket is not None:
            self._drain()
            self._socket.close()
            self._socket = None


class NetnsBackend:
    """See `lab.backend.Backend`.

    Args:
        identity: Tells this laboratory from others on the machine; a few letters.
        directory: Where it keeps its files; default: a new temporary one.
    """

    name = "netns"
    scale = 1.0
    clock_error = 0.0

    tap: TapControl
    nsm: NsmControl

    def __init__(self, identity: str, *, topology: Topology = TOPOLOGY, directory: Path | None = None) -> None:
        self.topology = topology
        self.prefix = f"wgv-{identity}"
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self.enclave_measurements: Mapping[str, str] = {}
        self.root_sha256 = ""
        self._processes: list[LocalProcess] = []
        self._captures: deque[PacketCapture] = deque(maxlen=_KEPT_CAPTURES)

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """See `lab.netns.privilege`."""
        return privilege.unavailable()

    @property
    def processors(self) -> str:
        """The enclave's too."""
        return "this machine's own"

    @property
    def nsm_device(self) -> str:
        """A namespace has no devices of its own."""
        return "none: the agent asks the signer over a Unix socket"

    @property
    def own_processes(self) -> tuple[str, ...]:
        """The vsock point, and who signs."""
        return ("signer", "tap")

    # -- staying up ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `attach` needs, as JSON values."""
        return {
            "prefix": self.prefix,
            "directory": str(self.directory),
            "root_sha256": self.root_sha256,
            "enclave_measurements": dict(self.enclave_measurements),
            "processes": [process.describe() for process in self._processes],
        }

    @classmethod
    def attach(cls, state: Mapping[str, Any]) -> Self:
        """The laboratory that another process has raised."""
        backend = cls(state["prefix"].removeprefix("wgv-"), directory=Path(state["directory"]))
        backend.root_sha256 = state["root_sha256"]
        backend.enclave_measurements = state["enclave_measurements"]
        backend._processes = [LocalProcess.adopt(description) for description in state["processes"]]
        backend._connect_controls()
        return backend

    def detach(self) -> None:
        """Nothing is held: namespaces are entered anew for each command."""

    def process(self, name: str) -> LocalProcess | None:
        """The newest process of a name that still runs."""
        for process in reversed(self._processes):
            if process.name == name and process.poll() is None:
                return process
        return None

    # -- up and down ---------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls) -> None:
        """Nothing to download, nothing to build."""

    def up(self) -> None:
        """Raise network, servers, signer and tap."""
        for folder in ("logs", "nsm", "relay-side", "enclave-side"):
            (self.directory / folder).mkdir(parents=True)
        for node in Node:
            self._furnish(node)
        build.raise_network(self.topology, self.prefix)
        starting = [self.start_server(service) for service in self.topology.services]
        signer = self._start_signer()
        tap = self._start_tap()
        for process in (*starting, tap):
            process.wait_for_line("ready", self.deadline(20))
        self._read_signer(signer)
        self.deadline(5).poll(lambda: build.links_are_up(self.topology, self.prefix), "the links to come up")
        self._connect_controls()

    def _connect_controls(self) -> None:
        self.tap = TapControl(UnixAddress(str(self.directory / "tap.sock")), self.directory / "vsock.pcap")
        self.nsm = NsmControl(f"{self.directory}/nsm/control.sock")

    def _furnish(self, node: Node) -> None:
        etc, run = self.directory / node / "etc", self.directory / node / "run"
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
        resolver = f"nameserver {self.topology.external4}\n" if node in {Node.POD, Node.EXTERNAL} else ""
        (etc / "resolv.conf").write_text(resolver)

    def start_server(self, service: Service) -> LocalProcess:
        """Start the server of a node."""
        return self.spawn(service.node, self.server_argv(service), name=f"{service.node}-server")

    def server_argv(self, service: Service) -> list[str]:
        """The command of a node's server."""
        argv = [sys.executable, str(LAB / "servers.py"), "--name", service.node]
        argv += ["--echo-port", str(service.echo_port), "--http-port", str(service.http_port)]
        if service.dns_port is not None:
            argv += ["--dns-port", str(service.dns_port), "--zone", self.topology.zone]
            argv += ["--a", self.topology.external4, "--aaaa", self.topology.external6]
        return argv

    @property
    def signer_socket(self) -> Path:
        """Where the signer answers for the enclave."""
        return self.directory / "nsm/enclave.sock"

    def _start_signer(self, *options: str) -> LocalProcess:
        nsm = self.directory / "nsm"
        argv = ["--socket", str(self.signer_socket), "--control", f"{nsm}/control.sock", "--state-dir", str(nsm)]
        return self.spawn_here([sys.executable, "-m", "lab.nsm.server", *argv, *options], name="signer")

    def _read_signer(self, signer: LocalProcess) -> None:
        announced = json.loads(signer.wait_for_line("root_sha256", self.deadline(20)))
        self.root_sha256 = announced["root_sha256"]
        self.enclave_measurements = announced["pcrs"]

    def _start_tap(self) -> LocalProcess:
        routes = [
            TapRoute(port, self._socket("relay-side", port), self._enclave_side(port))
            for port in (WIREGUARD_PORT, PROVISIONING_PORT)
        ]
        argv = ["--recording", str(self.directory / "vsock.pcap"), "--control", f"unix:{self.directory}/tap.sock"]
        return self.spawn_here([sys.executable, "-m", "lab.tap", *argv, *map(str, routes)], name="tap")

    def _enclave_side(self, port: Port) -> StreamAddress:
        """Where the tap dials."""
        return self._socket("enclave-side", port)

    def _socket(self, side: str, port: int) -> UnixAddress:
        return UnixAddress(str(self.directory / side / str(port)))

    def down(self) -> None:
        """Kill, unmount, remove."""
        for capture in self._captures:
            with contextlib.suppress(LabError):
                capture.close()
        for process in reversed(self._processes):
            process.kill()
        if hasattr(self, "tap"):
            self.tap.close()
        build.remove_network(self.prefix)
        shutil.rmtree(self.directory, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Processes, namespaces and files of this laboratory."""
        found = [f"process {p.pid} ({p.name})" for p in self._processes if p.poll() is None]
        for node in Node:
            name = build.namespace(self.prefix, node)
            found += [f"process {pid} in {name}" for pid in namespaces.processes_in(name)]
            if namespaces.exists(name):
                found.append(f"namespace {name}")
        if self.directory.exists():
            found.append(f"folder {self.directory}")
        return found

    def processes_in(self, node: Node) -> list[int]:
        """Identifiers of the processes that run in a node."""
        return namespaces.processes_in(build.namespace(self.prefix, node))

    def dial_enclave(self, port: Port) -> socket.socket:
        """A stream to a vsock port of the enclave, past the tap."""
        return self._dial(self._enclave_side(port))

    def _dial(self, address: StreamAddress) -> socket.socket:
        seconds = self.deadline(_DIAL_TIMEOUT).seconds

        async def dial() -> socket.socket:
            return await connect_stream(address, deadline=asyncio.get_running_loop().time() + seconds)

        sock = asyncio.run(dial())
        sock.settimeout(seconds)
        return sock

    def divert(self, port: Port, listener: Path | None) -> None:
        """Lead the Relay's next connections elsewhere."""
        self.tap.reroute(port, UnixAddress(str(listener)) if listener is not None else self._enclave_side(port))

    def refresh_logs(self) -> None:
        """Nothing: the processes write into them."""

    def keep_artifacts(self, folder: Path) -> None:
        """Copy logs, configurations, captures and what passed at the vsock point."""
        from lab.capture import write_pcap

        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.directory / "logs", folder / "logs", dirs_exist_ok=True)
        for path in (*self.directory.glob("*.toml"), self.directory / "vsock.pcap"):
            if path.exists():
                shutil.copy(path, folder)
        for number, capture in enumerate(self._captures):
            with contextlib.suppress(LabError):
                if packets := capture.packets():
                    with (folder / f"capture-{number}-{capture.point}.pcap").open("wb") as stream:
                        write_pcap(stream, packets, packets[0].linktype)

    # -- commands ------------------------------------------------------------------------------------------------------

    def deadline(self, seconds: float) -> Deadline:
        """In this machine's own time."""
        return Deadline(seconds, scale=self.scale)

    def enter(self, node: Node) -> list[str]:
        """What to put in front of a command that is to run in a node."""
        return build.enter(self.prefix, node, str(self.directory / node))

    def translate(self, node: Node, argv: Sequence[str]) -> list[str]:
        """The same: a namespace sees this machine's files."""
        del node
        return list(argv)

    def run(
        self, node: Node, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> Completed:
        """Run a command in a node."""
        remaining = (deadline or self.deadline(10)).remaining
        try:
            done = subprocess.run(
                [*self.enter(node), *argv], input=stdin, capture_output=True, timeout=remaining, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabTimeoutError(
                f"waited {remaining:.1f} s for {' '.join(argv)} in {node}", why="it did not end"
            ) from None
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start a command in a node."""
        return self.spawn_here([*self.enter(node), *argv], name=name, stdin=stdin)

    def spawn_here(self, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start a command on this machine, in no node; it goes with the laboratory."""
        process = LocalProcess.start(name, argv, log=self.directory / f"logs/{name}.log", stdin=stdin)
        self._processes.append(process)
        return process

    # -- Relay and Enclave ---------------------------------------------------------------------------------------------

    def relay_config(self) -> dict[str, Any]:
        """A relay.toml for this laboratory."""
        return configurations.relay_config(
            self.topology,
            enclave_address=str(self._socket("relay-side", WIREGUARD_PORT)),
            provisioning_address=str(self._socket("relay-side", PROVISIONING_PORT)),
            root_sha256=self.root_sha256,
            pcrs=self.enclave_measurements,
            runtime_directory="/run/wgvsock",
        )

    def enclave_config(self) -> dict[str, Any]:
        """An enclave.toml for this laboratory."""
        return configurations.enclave_config(
            listen=str(self._socket("enclave-side", WIREGUARD_PORT)),
            provisioning_listen=str(self._socket("enclave-side", PROVISIONING_PORT)),
            parent_cid=_LOCAL_PARENT_CID,
            runtime_directory="/run/wgvsock",
        )

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Start the production Relay in the pod."""
        path = self._write_config("relay.toml", config if config is not None else self.relay_config())
        if timings:
            argv = [sys.executable, "-m", "lab.relay_agent", "--config", path, "--timings", json.dumps(timings)]
        else:
            argv = [str(Path(sys.executable).with_name("wgvsock")), "relay", "run", "--config", path]
        return self.spawn(Node.POD, argv, name="relay")

    def start_enclave(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Start the production Enclave with the laboratory's signer as its security module, and its application."""
        path = self._write_config("enclave.toml", config if config is not None else self.enclave_config())
        argv = [sys.executable, "-m", "lab.enclave_agent", "--config", path]
        argv += ["--secure-module", str(self.signer_socket)]
        argv += ["--entropy-log", str(self.entropy_log), "--timings", json.dumps(timings or {})]
        return self.spawn(Node.ENCLAVE, [*argv, "--", *self.server_argv(self.topology.application)], name="enclave")

    @property
    def entropy_log(self) -> Path:
        """Where the enclave agent notes the entropy that it drew (`lab.opener`)."""
        return self.directory / "entropy.log"

    def _write_config(self, name: str, config: Mapping[str, Any]) -> str:
        path = self.directory / name
        path.write_text(configurations.to_toml(config))
        return str(path)

    # -- watching ------------------------------------------------------------------------------------------------------

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture."""
        node, interface = PACKET_POINTS[point]
        capture = NamespaceCapture(point, build.namespace(self.prefix, node), interface)
        self._captures.append(capture)
        return capture

    def status(self, node: Node) -> dict[str, Any] | None:
        """What the Relay (in the pod) or the Enclave says of itself; None while it does not answer."""
        role = {Node.POD: "relay", Node.ENCLAVE: "enclave"}[node]
        path = self.directory / node / f"run/wgvsock/{role}.sock"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(2)
                sock.connect(str(path))
                sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
                with sock.makefile("rb") as answer:
                    _, _, body = answer.read().partition(b"\r\n\r\n")
        except OSError:
            return None
        status: dict[str, Any] = json.loads(body)
        return status
