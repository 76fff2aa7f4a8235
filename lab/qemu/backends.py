"""The backends whose machines are QEMU guests (docs/lab.md says what each proves).

Each is composed of two kinds of places: namespaces of this machine (`lab.netns.nodes`) and guests (`lab.qemu.nodes`).

=========  ===================================  ==========================================  =========================
backend    pod, node, external                  enclave                                     vsock
=========  ===================================  ==========================================  =========================
guest      namespaces of this machine           a guest                                     hybrid at the Relay's end
pair       namespaces of the first guest        a second guest                              AF_VSOCK at both ends
=========  ===================================  ==========================================  =========================

`lab.qemu.vhost`, `lab.qemu.loopback` and `lab.qemu.nested` have three more.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final

from lab import config as configurations
from lab.backend import Place
from lab.deadline import Deadline
from lab.errors import Unavailable
from lab.guest.cuse.nsm import SIGNER_PORT
from lab.image.build import PYTHON, Image, build_base
from lab.image.build import build as build_image
from lab.image.eif import measure, measurements_json
from lab.image.enclave import from_image
from lab.image.packages import cache_directory, read_lock, unavailable, unpack_group
from lab.laboratory import PORTS, Laboratory
from lab.netns import privilege
from lab.netns.nodes import NamespaceNodes
from lab.process import LocalProcess
from lab.qemu import security_module
from lab.qemu.channel import GuestProcess
from lab.qemu.errors import GuestError
from lab.qemu.kvm import Acceleration
from lab.qemu.kvm import choose as choose_acceleration
from lab.qemu.machine import BOOT_DEADLINE, GuestVsock, Machine, MachineSpec, Tools, VsockDevice
from lab.qemu.nodes import GUEST_DIRECTORY, GuestNodes
from lab.qemu.security_module import SecurityModule
from lab.topology import Node
from wgvsock.addresses import (
    PROVISIONING_PORT,
    VMADDR_CID_ANY,
    VMADDR_CID_HOST,
    WIREGUARD_PORT,
    Cid,
    Port,
    StreamAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.runtime.directory import RUNTIME_DIRECTORY

ENCLAVE_CID: Final = Cid(16)
NODE_CID: Final = Cid(3)
_ENTROPY_LOG: Final = f"{GUEST_DIRECTORY}/entropy.log"


class GuestBackend(Laboratory):
    """The enclave is a guest, and everything else stays on this machine. See `lab.backend.Backend`.

    Args:
        identity: Distinguishes this laboratory from others on the machine, in a few letters.
        tools: Location of QEMU. Default: the pinned packages in the cache.
        image: What the guests boot. Default: this checkout on the pinned packages.
        options: See `lab.laboratory.Laboratory`.
    """

    name = "guest"
    takes = "about a minute, and more with an empty cache or on a busy machine without KVM"
    moved: ClassVar[frozenset[Node]] = frozenset()
    """Nodes that are namespaces of the node guest."""

    boot_deadline = BOOT_DEADLINE
    """Seconds within which a guest has to report that it is ready."""

    signer_port = Port(SIGNER_PORT)
    """The address at which the enclave guest's host answers for the signer."""

    security_module: SecurityModule
    """The connection from the signer to the enclave's /dev/nsm."""

    _tools: Tools
    _image: Image
    _acceleration: Acceleration

    def __init__(
        self, identity: str, *, tools: Tools | None = None, image: Image | None = None, **options: Any
    ) -> None:
        super().__init__(identity, **options)
        nodes = frozenset(self.topology.nodes) - self.moved - {Node.ENCLAVE}
        self.here: NamespaceNodes = NamespaceNodes(
            self.topology, self.prefix, self.directory, nodes=nodes, spawn=self.spawn_here
        )
        self.enclave_cid = ENCLAVE_CID
        self._given = (tools, image)
        self._machines: dict[Node, Machine] = {}
        self._devices: dict[Node, GuestVsock] = {}
        self._enclave_image: Image | None = None  # replaces the laboratory's
        self.security_module = security_module.kind(security_module.asked_for())(self)
        self._guest_processes: list[tuple[str, GuestProcess]] = []

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """Requires namespaces here, unless all are in a guest, and the pinned packages."""
        return unavailable() or (None if cls.moved else privilege.unavailable())

    @property
    def processors(self) -> str:
        """See `lab.qemu.kvm`."""
        return str(self._acceleration)

    @property
    def nsm_device(self) -> str:
        """See `lab.qemu.security_module`."""
        return f"{security_module.DEVICE} {self.security_module.served_by}"

    @property
    def own_processes(self) -> tuple[str, ...]:
        """Also covers those of the security module."""
        return (*super().own_processes, *self.security_module.own_processes)

    # -- staying up ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        return {
            **super().state(),
            "enclave_cid": self.enclave_cid,
            "tools": str(self._tools.root),
            "image": {
                "kernel": str(self._image.kernel),
                "ramdisks": [str(ramdisk) for ramdisk in self._image.ramdisks],
                "command_line": self._image.command_line,
            },
            "security_module": self.security_module.name,
            "acceleration": asdict(self._acceleration),
            "machines": {node: machine.describe() for node, machine in self._machines.items()},
            "devices": {node: device.describe() for node, device in self._devices.items()},
            "guest_processes": [{"guest": guest, **process.describe()} for guest, process in self._guest_processes],
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the guests and what runs in them."""
        super().adopt(state)
        self.enclave_cid = state["enclave_cid"]
        self._tools = Tools(Path(state["tools"]))
        image = state["image"]
        self._image = Image(Path(image["kernel"]), tuple(map(Path, image["ramdisks"])), image["command_line"])
        self._acceleration = Acceleration(**state["acceleration"])
        self.security_module = security_module.kind(state["security_module"])(self)
        for name, description in state["machines"].items():
            node = Node(name)
            self._place(node, self._guests()[node])
            self._machines[node].adopt(description)
            self._devices[node].adopt(state["devices"][name])
        self.scale = max(machine.scale for machine in self._machines.values())
        for description in state["guest_processes"]:
            log = self.directory / f"logs/{description['name']}.log"
            process = self._machines[Node(description["guest"])].adopt_process(description, log)
            self._guest_processes.append((description["guest"], process))

    def detach(self) -> None:
        """Close the request channels: a guest's serves one process at a time."""
        for machine in self._machines.values():
            machine.hang_up()

    def process(self, name: str) -> LocalProcess | None:
        """Return the newest running process of a name."""
        for _, process in reversed(self._guest_processes):
            if process.name == name and process.poll() is None:
                return process
        return super().process(name)

    # -- up and down ---------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls) -> None:
        """Fill the cache with QEMU, kernel and userland from the pinned packages, and find out about KVM."""
        tools = _tools(security_module.kind(security_module.asked_for()))
        choose_acceleration(tools, build_base(cache_directory()).kernel)

    def up(self) -> None:
        """Start the signer, the guests, the network in them and the tap."""
        for folder in ("logs", "nsm"):
            (self.directory / folder).mkdir(parents=True)
        tools, image = self._given
        self._tools = tools or _tools(self.security_module)
        self._image = image or self._build_image()
        self._acceleration = choose_acceleration(self._tools, self._image.kernel)
        signer = self._start_signer()
        self.security_module.raise_up()
        self._boot()
        self._raise_nodes()
        self._start_services(signer)
        self._connect_controls()

    def _build_image(self) -> Image:
        """Return what the enclave's guest boots and is measured by."""
        return build_image(target=self.directory)

    def _start_signer(self, *options: str) -> LocalProcess:
        """Create it with the measurements that an enclave image of these files has."""
        measured = measurements_json(measure(from_image(self._image)))
        path = self.directory / "measurements.json"
        path.write_text(json.dumps(measured))
        return super()._start_signer("--measurements", str(path), *options)

    def _boot(self) -> None:
        """Start the guests together, so that they boot in parallel."""
        for node, cid in self._guests().items():
            self._start(node, cid)
        for machine in self._machines.values():
            machine.wait_ready(Deadline(self.boot_deadline))
        self.scale = max(machine.scale for machine in self._machines.values())

    def _guests(self) -> dict[Node, Cid]:
        """Return the guests by name, with their CIDs."""
        return {Node.ENCLAVE: self.enclave_cid, **({Node.NODE: NODE_CID} if self.moved else {})}

    def _place(self, node: Node, cid: Cid) -> None:
        folder = self.directory / f"vm-{node}"
        self._devices[node] = self._vsock_device(cid, folder)
        self._machines[node] = Machine(self._specification(node), self._tools, folder)

    def _vsock_device(self, cid: Cid, folder: Path) -> GuestVsock:
        return VsockDevice(self._tools, cid, folder)

    def _specification(self, node: Node) -> MachineSpec:
        vsock = self._devices[node].specification
        image = self._enclave_image if node is Node.ENCLAVE else None
        extra = self.security_module.options() if node is self._guest_of(Node.ENCLAVE) else ()
        return MachineSpec(node, image or self._image, vsock=vsock, accelerator=self._acceleration.name, extra=extra)

    def _start(self, node: Node, cid: Cid) -> None:
        """Start a guest with its vsock device, through which the enclave's security module is reached."""
        self._place(node, cid)
        device = self._devices[node]
        device.start(Deadline(10))
        if node is self._guest_of(Node.ENCLAVE):
            self.security_module.power_on(device)
        self._machines[node].start()

    @property
    def enclave_guest(self) -> Machine:
        """The Enclave's guest."""
        return self._machines[self._guest_of(Node.ENCLAVE)]

    @property
    def enclave_vsock(self) -> GuestVsock:
        """That guest's vsock device."""
        return self._devices[self._guest_of(Node.ENCLAVE)]

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """Cut the enclave guest's power and boot it again, with another CID if requested.

        Args:
            cid: Its new CID.
            image: Boots in place of the laboratory's image this time. The signer measures it.
        """
        entropy = b""
        with contextlib.suppress(GuestError):  # nothing has been started in it
            entropy = self.entropy_log.read_bytes()
        self._machines[Node.ENCLAVE].kill()
        self._devices[Node.ENCLAVE].stop()
        self.enclave_cid = cid or self.enclave_cid
        self._enclave_image = image
        self.nsm.set_measurements(measure(from_image(image or self._image)))
        self._start(Node.ENCLAVE, self.enclave_cid)
        self._machines[Node.ENCLAVE].wait_ready(Deadline(self.boot_deadline))
        self._machines[Node.ENCLAVE].channel().write_file(_ENTROPY_LOG, entropy)

    def _raise_nodes(self) -> None:
        self.here.up()
        if self.moved:
            self._nodes_in(self._machines[Node.NODE]).up(self.topology, self.deadline)
        self.here.wait_for_links(self.deadline(5))

    def _relay_side(self, port: Port) -> StreamAddress:
        return UnixAddress(str(self.directory / f"relay-{port}"))

    def _enclave_side(self, port: Port) -> StreamAddress:
        """Return the address that the tap dials: the enclave guest's vsock port, through its device."""
        return self._devices[Node.ENCLAVE].address(port)

    def down(self) -> None:
        """End the guests, then everything on this machine."""
        for machine in self._machines.values():
            machine.kill()
        for device in self._devices.values():
            device.stop()
        super().down()

    def leftovers(self) -> list[str]:
        """Includes the guests' processes."""
        guests = [machine.spec.name for machine in self._machines.values() if machine.exit_code() is None]
        return [f"the guest {name}" for name in guests] + super().leftovers()

    def refresh_logs(self) -> None:
        """Fetch the output of the guests' processes."""
        for _, process in self._guest_processes:
            process.output()

    def keep_artifacts(self, folder: Path) -> None:
        """Includes the guests' consoles and what their devices said."""
        self.refresh_logs()
        super().keep_artifacts(folder)
        for node, machine in self._machines.items():
            for name in ("console.log", "verdict", "qemu.log", "vsock.log"):
                if (machine.directory / name).exists():
                    shutil.copy(machine.directory / name, folder / f"{node}-{name}")

    # -- commands ------------------------------------------------------------------------------------------------------

    def machine_of(self, node: Node) -> Machine | None:
        """Return the guest that holds a node, or None if this machine does."""
        return self._machines.get(self._guest_of(node))

    def _guest_of(self, node: Node) -> Node:
        """Return the name of the guest that holds a node, or None."""
        return Node.NODE if node in self.moved else node

    def place_of(self, node: Node) -> Place:
        """Return the guest that holds a node, or this machine."""
        machine = self.machine_of(node)
        return self.here if machine is None else self._nodes_in(machine)

    def _nodes_in(self, machine: Machine) -> GuestNodes:
        logs = self.directory / "logs"
        return GuestNodes(machine, self.prefix, nodes=self.moved, spawn=self.spawn_in, logs=logs)

    def spawn_in(self, machine: Machine, argv: Sequence[str], *, name: str, stdin: bool = False) -> GuestProcess:
        """Start a command in a guest, outside its nodes."""
        process = machine.spawn(argv, name=name, log=self.directory / f"logs/{name}.log", stdin=stdin)
        self._guest_processes.append((machine.spec.name, process))
        return process

    def _dial_from_node_guest(self, port: Port, entrance: Port) -> socket.socket:
        """Open a stream to the Enclave's port from the node guest, if this machine has none.

        Args:
            port: The Enclave's.
            entrance: A port of the node guest that admits only this machine.
        """
        name = f"forwarder-{port}"
        if self.process(name) is None:
            ends = (VsockAddress(VMADDR_CID_ANY, entrance), self._enclave_side(port))
            argv = [PYTHON, "-m", "lab.qemu.forward", "--peer", str(VMADDR_CID_HOST), *map(str, ends)]
            self.spawn_in(self._machines[Node.NODE], argv, name=name).wait_for_line("ready", self.deadline(20))
        return self._dial(self._devices[Node.NODE].address(entrance))

    def processes_in(self, node: Node) -> list[int]:
        """Return the process IDs of a node's processes. In an enclave, without the agent and the security module."""
        ours = self.security_module.processes() if node is Node.ENCLAVE and node not in self.moved else frozenset()
        return [pid for pid in super().processes_in(node) if pid not in ours]

    # -- Relay and Enclave ---------------------------------------------------------------------------------------------

    def relay_config(self) -> dict[str, Any]:
        """Return a relay.toml for this laboratory."""
        config = super().relay_config()
        # Emulated processors need longer for the handshake's curve operations than the defaults allow.
        config["provisioning"] = {"exchange_timeout": 10 * self.scale, "handshake_timeout": 10 * self.scale}
        return config

    def enclave_config(self) -> dict[str, Any]:
        """Return an enclave.toml for this laboratory."""
        return configurations.enclave_config(
            listen=str(VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)),
            provisioning_listen=str(VsockAddress(VMADDR_CID_ANY, PROVISIONING_PORT)),
            parent_cid=VMADDR_CID_HOST,
            runtime_directory=RUNTIME_DIRECTORY,
        )

    def start_enclave(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        timings: Mapping[str, float] | None = None,
        application: Sequence[str] | None = None,
    ) -> LocalProcess:
        """Start the production Enclave with /dev/nsm, and its application, as after a boot.

        The module's registers are as after a boot. The production command has no option for timings: with some,
        `lab.programs.enclave` replaces it.
        """
        for device in self._devices.values():
            device.check()
        self.security_module.boot()
        path = self.write_config(Node.ENCLAVE, config if config is not None else self.enclave_config())
        if timings:
            argv = [PYTHON, "-m", "lab.programs.enclave", "--config", path, "--entropy-log", _ENTROPY_LOG]
            argv += ["--timings", json.dumps(timings), "--"]
        else:
            argv = [PYTHON, "-m", "lab.programs.production", _ENTROPY_LOG, "enclave", "run", "--config", path, "--"]
        command = application or self.server_argv(self.topology.application)
        return self.spawn(Node.ENCLAVE, [*argv, *command], name="enclave")

    @property
    def entropy_log(self) -> Path:
        """Return the enclave's record of its entropy, fetched from the guest."""
        path = self.directory / "entropy.log"
        path.write_bytes(self.enclave_guest.channel().read_file(_ENTROPY_LOG))
        return path


class PairBackend(GuestBackend):
    """Two guests: the Relay's node and the enclave, with AF_VSOCK at both ends."""

    name = "pair"
    moved = frozenset({Node.POD, Node.NODE, Node.EXTERNAL})

    def relay_address(self, port: Port) -> StreamAddress:
        """Return the node guest's host, where the tap answers."""
        return VsockAddress(VMADDR_CID_HOST, port)

    def _start_tap(self) -> LocalProcess:
        """It listens where the node guest's connections to its host arrive."""
        for port in PORTS:
            self._devices[Node.NODE].serve(port, self.directory / f"relay-{port}")
        return super()._start_tap()


def _tools(module: SecurityModule | type[SecurityModule]) -> Tools:
    """The pinned QEMU that a security module needs."""
    return Tools(unpack_group(module.packages, read_lock(), cache_directory()))
