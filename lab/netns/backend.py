"""The `netns` backend: the production Relay and Enclave in network namespaces, and a Unix stream in place of the vsock.

The enclave's namespace has no cable. Its only connection is a pair of sockets in the file system, which represent its
vsock ports. The tap sits between them and the Relay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lab import config as configurations
from lab.errors import Unavailable
from lab.laboratory import PORTS, Laboratory
from lab.netns import privilege
from lab.netns.nodes import NamespaceNodes
from lab.nsm.client import NsmControl
from lab.nsm.pcrs import lab_measurements
from lab.nsm.wire import control_path
from lab.process import LocalProcess
from lab.topology import TOPOLOGY, Node, Topology
from lab.watch.tap import TapControl, TapRoute
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT, Port, UnixAddress
from wgvsock.runtime.directory import RUNTIME_DIRECTORY

_LOCAL_PARENT_CID: Final = 2  # without a vsock no CID is ever compared: this is a QEMU host's

_NEIGHBOURS_PARENT: Final = "i-0123456789abcdef0"  # measured as PCR4, which no policy of the laboratory checks


class NetnsBackend(Laboratory):
    """See `lab.backend.Backend`.

    Args:
        identity: A few letters that tell this laboratory from others on the machine.
        topology: The plan.
        directory: Where it keeps its files. By default a new temporary directory.

    Attributes:
        vsock_folder: What the Relay dials in place of AF_VSOCK (`lab.programs.local_vsock`).
        counting: Whether services are started so that their tasks can be counted (`lab.programs.counted`).
        measurements_of: Of the enclaves beside the first.
    """

    name = "netns"
    takes = "some seconds"

    def __init__(self, identity: str, *, topology: Topology = TOPOLOGY, directory: Path | None = None) -> None:
        super().__init__(identity, topology=topology, directory=directory)
        self.here: NamespaceNodes = NamespaceNodes(
            topology, self.prefix, self.directory, nodes=topology.nodes, spawn=self.spawn_here
        )
        self.measurements_of: dict[Node, Mapping[str, str]] = {}
        self.vsock_folder: Path | None = None
        self.counting = False
        self._neighbours_taps: dict[Node, TapControl] = {}

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """See `lab.netns.privilege`."""
        return privilege.unavailable()

    @property
    def processors(self) -> str:
        """Also covers the enclave's."""
        return "this machine's own"

    @property
    def nsm_device(self) -> str:
        """A namespace has no devices."""
        return "none: the agent asks the signer over a Unix socket"

    def detach(self) -> None:
        """Nothing to release: namespaces are entered for each command."""

    def refresh_logs(self) -> None:
        """Nothing to do: the processes write into them."""

    # -- up and down ---------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls) -> None:
        """Nothing to download, nothing to build."""

    def up(self) -> None:
        """Start network, servers, signer and tap."""
        for folder in ("logs", "nsm", "relay-side", "enclave-side"):
            (self.directory / folder).mkdir(parents=True)
        signer = self._start_signer()
        self.here.up()
        self._start_services(signer)
        for tenant in self.topology.neighbours:
            self._prepare_neighbour(tenant.node)
        self.here.wait_for_links(self.deadline(5))
        self._connect_controls()

    def _connect_controls(self) -> None:
        super()._connect_controls()
        for tenant in self.topology.neighbours:
            control = UnixAddress(str(self.directory / f"tap-{tenant.node}.sock"))
            self._neighbours_taps[tenant.node] = TapControl(control, self.directory / f"vsock-{tenant.node}.pcap")

    def _taps(self) -> Iterable[TapControl]:
        return (*super()._taps(), *self._neighbours_taps.values())

    def tap_of(self, node: Node) -> TapControl:
        """Return the vsock point of an enclave."""
        return self.tap if node is Node.ENCLAVE else self._neighbours_taps[node]

    def _prepare_neighbour(self, node: Node) -> None:
        """Prepare a separate vsock point and security module, which has measured another image."""
        for side in ("relay-side", "enclave-side"):
            (self.directory / side / node).mkdir()
        routes = [
            TapRoute(port, self._socket("relay-side", port, node), self._socket("enclave-side", port, node))
            for port in PORTS
        ]
        tap = self._start_tap_here(routes, f"tap-{node}", f"vsock-{node}.pcap")
        signer = NsmControl(control_path(self.directory / "nsm"))
        measured = lab_measurements(node, _NEIGHBOURS_PARENT)
        described = signer.create(node, str(self.directory / f"nsm/{node}.sock"), measurements=measured)
        self.measurements_of[node] = {f"PCR{index}": value.hex() for index, value in described.measurements.items()}
        tap.wait_for_line("ready", self.deadline(20))

    # -- the vsock -----------------------------------------------------------------------------------------------------

    def _relay_side(self, port: Port) -> UnixAddress:
        return self._socket("relay-side", port)

    def _enclave_side(self, port: Port) -> UnixAddress:
        return self._socket("enclave-side", port)

    def _socket(self, side: str, port: int, node: Node = Node.ENCLAVE) -> UnixAddress:
        folder = self.directory / side
        return UnixAddress(str((folder if node is Node.ENCLAVE else folder / node) / str(port)))

    # -- Relay and Enclave ---------------------------------------------------------------------------------------------

    def relay_config(self) -> dict[str, Any]:
        """Return a relay.toml for this laboratory."""
        if not self.topology.neighbours:
            return super().relay_config()
        measured = {Node.ENCLAVE: self.enclave_measurements, **self.measurements_of}
        return configurations.fleet_config(
            self.topology,
            addresses={node: self._relay_addresses(node) for node in measured},
            root_sha256=self.root_sha256,
            pcrs=measured,
            runtime_directory=RUNTIME_DIRECTORY,
        )

    def _relay_addresses(self, node: Node) -> tuple[str, str]:
        """Return the addresses that the Relay dials for an enclave: for WireGuard, and to provision."""
        one, other = (str(self._socket("relay-side", port, node)) for port in PORTS)
        return one, other

    def enclave_config(self) -> dict[str, Any]:
        """Return an enclave.toml for this laboratory."""
        return configurations.enclave_config(
            listen=str(self._socket("enclave-side", WIREGUARD_PORT)),
            provisioning_listen=str(self._socket("enclave-side", PROVISIONING_PORT)),
            parent_cid=_LOCAL_PARENT_CID,
            runtime_directory=RUNTIME_DIRECTORY,
        )

    def _relay_command(self, config: str, timings: Mapping[str, float] | None) -> list[str]:
        if timings:
            return self._python("relay", "lab.programs.relay", "--config", config, "--timings", json.dumps(timings))
        command = ["wgvsock.cli", "relay", "run", "--config", config]
        if self.vsock_folder is not None:
            return self._python("relay", "lab.programs.local_vsock", str(self.vsock_folder), *command)
        return self._python("relay", *command) if self.counting else super()._relay_command(config, timings)

    def start_enclave(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        timings: Mapping[str, float] | None = None,
        application: Sequence[str] | None = None,
    ) -> LocalProcess:
        """Start the production Enclave with the laboratory's signer as its security module, and its application."""
        path = self.write_config(Node.ENCLAVE, config if config is not None else self.enclave_config())
        options = ["--secure-module", str(self.signer_socket), "--entropy-log", str(self.entropy_log)]
        options += ["--timings", json.dumps(timings or {})]
        return self._start_agent(Node.ENCLAVE, path, *options, application=application)

    def start_neighbour(self, node: Node) -> LocalProcess:
        """Start the Enclave of an additional machine of the plan, with its application."""
        listen, provisioning_listen = (str(self._socket("enclave-side", port, node)) for port in PORTS)
        config = {**self.enclave_config(), "listen": listen, "provisioning_listen": provisioning_listen}
        path = self.write_config(node, config)
        return self._start_agent(node, path, "--secure-module", str(self.directory / f"nsm/{node}.sock"))

    def _start_agent(
        self, node: Node, config: str, *options: str, application: Sequence[str] | None = None
    ) -> LocalProcess:
        argv = self._python(node, "lab.programs.enclave", "--config", config, *options)
        command = application or self.server_argv(self.topology.tenant(node).application)
        return self.spawn(node, [*argv, "--", *command], name=node)

    def _python(self, name: str, module: str, *arguments: str) -> list[str]:
        """Return a service's module as a command, counted if requested."""
        counted = ["-m", "lab.programs.counted", str(self.tasks_of(name)), module] if self.counting else ["-m", module]
        return [sys.executable, *counted, *arguments]

    def tasks_of(self, name: str) -> Path:
        """Return the file to which a counted service writes its tasks (`lab.programs.counted`)."""
        return self.directory / f"{name}.tasks"

    @property
    def entropy_log(self) -> Path:
        """Return the file in which the enclave agent records the entropy that it drew (`lab.watch.opener`)."""
        return self.directory / "entropy.log"
