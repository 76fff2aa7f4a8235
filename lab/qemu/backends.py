"""The backends whose machines are QEMU guests (docs/lab.md says what each proves).

All of them are the `netns` backend with some nodes moved into guests.

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
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from lab import config as configurations
from lab.backend import Completed, PacketCapture, Unavailable
from lab.cuse.nsm import SIGNER_PORT
from lab.deadline import Deadline
from lab.eif.build import from_image
from lab.eif.format import measure, measurements_json
from lab.errors import LabError
from lab.netns import build, privilege
from lab.netns.backend import LAB, NetnsBackend
from lab.process import LocalProcess
from lab.qemu import security_module
from lab.qemu.capture import GuestCapture
from lab.qemu.channel import GuestProcess
from lab.qemu.errors import GuestError
from lab.qemu.image import APPLICATION_ROOT, PYTHON, Image, build_base
from lab.qemu.image import build as build_image
from lab.qemu.kvm import Acceleration
from lab.qemu.kvm import choose as choose_acceleration
from lab.qemu.machine import BOOT_DEADLINE, SHELL_SOCKET, GuestVsock, Machine, MachineSpec, Tools, VsockDevice
from lab.qemu.packages import cache_directory, read_lock, unavailable, unpack_group
from lab.qemu.security_module import SecurityModule
from lab.tap import TapRoute
from lab.topology import PACKET_POINTS, Node, Point
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

ENCLAVE_CID: Final = Cid(16)
NODE_CID: Final = Cid(3)
PORTS: Final = (WIREGUARD_PORT, PROVISIONING_PORT)

GUEST_DIRECTORY: Final = "/lab"  # a node has a /run of its own
_ENTROPY_LOG: Final = f"{GUEST_DIRECTORY}/entropy.log"
_PROCESSES_SCRIPT: Final = """
import contextlib, os
found = []
for name in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline") as command:
        if command.read(1) and int(name) != os.getpid():
            found.append(int(name))
print(found)
"""
_STATUS_REQUEST: Final = b"GET /status HTTP/1.0\r\n\r\n"


class GuestBackend(NetnsBackend):
    """The enclave is a guest; everything else stays on this machine. See `lab.backend.Backend`.

    Args:
        identity: Tells this laboratory from others on the machine; a few letters.
        tools: QEMU's place; default: the pinned packages in the cache.
        image: What the guests boot; default: this checkout on the pinned packages.
        options: See `lab.netns.backend.NetnsBackend`.
    """

    name = "guest"
    moved: ClassVar[frozenset[Node]] = frozenset()
    """Nodes that are namespaces of the node guest."""

    boot_deadline = BOOT_DEADLINE
    """Seconds until a guest has to have said that it is ready."""

    signer_port = Port(SIGNER_PORT)
    """Where the enclave guest's host answers for the signer."""

    security_module: SecurityModule
    """What leads from the signer to the enclave's /dev/nsm."""

    _tools: Tools
    _image: Image
    _acceleration: Acceleration

    def __init__(
        self, identity: str, *, tools: Tools | None = None, image: Image | None = None, **options: Any
    ) -> None:
        super().__init__(identity, **options)
        self.enclave_cid = ENCLAVE_CID
        self._given = (tools, image)
        self._machines: dict[Node, Machine] = {}
        self._devices: dict[Node, GuestVsock] = {}
        self._enclave_image: Image | None = None  # in place of the laboratory's
        self.security_module = security_module.kind(security_module.asked_for())(self)
        self._guest_processes: list[tuple[str, GuestProcess]] = []

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """Namespaces are needed here unless all are in a guest, and the pinned packages."""
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
        """The security module's too."""
        return (*super().own_processes, *self.security_module.own_processes)

    # -- staying up ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `attach` needs, as JSON values."""
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

    @classmethod
    def attach(cls, state: Mapping[str, Any]) -> Self:
        """The laboratory that another process has raised."""
        backend = super().attach(state)
        backend.adopt(state)
        return backend

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the guests and what runs in them."""
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
        """Hang up: a guest's request channel serves one process at a time."""
        for machine in self._machines.values():
            machine.hang_up()

    def process(self, name: str) -> LocalProcess | None:
        """The newest process of a name that still runs."""
        for _, process in reversed(self._guest_processes):
            if process.name == name and process.poll() is None:
                return process
        return super().process(name)

    # -- up and down ---------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls) -> None:
        """Fill the cache: QEMU, kernel and userland from the pinned packages; and find out about KVM."""
        tools = _tools(security_module.kind(security_module.asked_for()))
        choose_acceleration(tools, build_base(cache_directory()).kernel)

    def up(self) -> None:
        """Raise the signer, the guests, the network in them and the tap."""
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
        starting = [self.start_server(service) for service in self.topology.services]
        tap = self._start_tap()
        for process in (*starting, tap):
            process.wait_for_line("ready", self.deadline(20))
        self._read_signer(signer)
        self._connect_controls()

    def _build_image(self) -> Image:
        """What the enclave's guest boots, and is measured by."""
        return build_image(target=self.directory)

    def _start_signer(self, *options: str) -> LocalProcess:
        """With the measurements that an enclave image of these files has."""
        measured = measurements_json(measure(from_image(self._image)))
        path = self.directory / "measurements.json"
        path.write_text(json.dumps(measured))
        return super()._start_signer("--measurements", str(path), *options)

    def _boot(self) -> None:
        """Start the guests together: they boot side by side."""
        for node, cid in self._guests().items():
            self._start(node, cid)
        for machine in self._machines.values():
            machine.wait_ready(Deadline(self.boot_deadline))
        self.scale = max(machine.scale for machine in self._machines.values())

    def _guests(self) -> dict[Node, Cid]:
        """The guests by name, with their CIDs."""
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
        """Start a guest with its vsock device; the enclave's security module is reached through it."""
        self._place(node, cid)
        device = self._devices[node]
        device.start(Deadline(10))
        if node is self._guest_of(Node.ENCLAVE):
            self.security_module.power_on(device)
        self._machines[node].start()

    @property
    def enclave_guest(self) -> Machine:
        """The guest that the Enclave runs in."""
        return self._machines[self._guest_of(Node.ENCLAVE)]

    @property
    def enclave_vsock(self) -> GuestVsock:
        """That guest's vsock device."""
        return self._devices[self._guest_of(Node.ENCLAVE)]

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """Cut the enclave guest's power and boot it again, with another CID if wanted.

        Args:
            cid: Its CID from now on.
            image: What to boot this time in place of the laboratory's image; the signer measures it.
        """
        entropy = b""
        with contextlib.suppress(GuestError):  # nothing was started in it yet
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
        here = frozenset(Node) - self.moved - {Node.ENCLAVE}
        for node in here:
            self._furnish(node)
        build.raise_network(self.topology, self.prefix, here)
        if self.moved:
            self._furnish_in_guest()
            nodes = ",".join(sorted(self.moved))
            argv = [PYTHON, "-m", "lab.netns.build", "up", "--prefix", self.prefix, "--nodes", nodes]
            self._machines[Node.NODE].run(argv, deadline=self.deadline(20)).check()
        self.deadline(5).poll(lambda: build.links_are_up(self.topology, self.prefix, here), "the links to come up")

    def _furnish_in_guest(self) -> None:
        """An /etc and a /run of each node's own; the guest's /etc has all that they need."""
        machine = self._machines[Node.NODE]
        script = 'for folder; do mkdir -p "$folder/run/netns" && cp -a /etc "$folder/etc" || exit; done'
        machine.run(["sh", "-c", script, "sh", *(f"{GUEST_DIRECTORY}/{node}" for node in sorted(self.moved))]).check()
        for node in self.moved:
            resolver = f"nameserver {self.topology.external4}\n" if node in {Node.POD, Node.EXTERNAL} else ""
            machine.channel().write_file(f"{GUEST_DIRECTORY}/{node}/etc/resolv.conf", resolver.encode())

    def _start_tap(self) -> LocalProcess:
        routes = [TapRoute(port, self._relay_side(port), self._enclave_side(port)) for port in PORTS]
        argv = ["--recording", str(self.directory / "vsock.pcap"), "--control", f"unix:{self.directory}/tap.sock"]
        return self.spawn_here([sys.executable, "-m", "lab.tap", *argv, *map(str, routes)], name="tap")

    def _relay_side(self, port: Port) -> StreamAddress:
        """Where the tap listens for the Relay's dial."""
        return UnixAddress(str(self.directory / f"relay-{port}"))

    def _enclave_side(self, port: Port) -> StreamAddress:
        """Where the tap dials: the enclave guest's vsock port, through its device."""
        return self._devices[Node.ENCLAVE].address(port)

    def down(self) -> None:
        """End the guests, then everything of this machine."""
        for machine in self._machines.values():
            machine.kill()
        for device in self._devices.values():
            device.stop()
        super().down()

    def leftovers(self) -> list[str]:
        """Also the guests' processes."""
        guests = [machine.spec.name for machine in self._machines.values() if machine.exit_code() is None]
        return [f"the guest {name}" for name in guests] + super().leftovers()

    def refresh_logs(self) -> None:
        """Fetch what the guests' processes have written."""
        for _, process in self._guest_processes:
            process.output()

    def keep_artifacts(self, folder: Path) -> None:
        """Also the guests' consoles."""
        self.refresh_logs()
        super().keep_artifacts(folder)
        for node, machine in self._machines.items():
            for name in ("console.log", "verdict", "qemu.log"):
                if (machine.directory / name).exists():
                    shutil.copy(machine.directory / name, folder / f"{node}-{name}")

    # -- commands ------------------------------------------------------------------------------------------------------

    def machine_of(self, node: Node) -> Machine | None:
        """The guest that holds a node; None: this machine does."""
        return self._machines.get(self._guest_of(node))

    def _guest_of(self, node: Node) -> Node:
        """The name of the guest that holds a node, if one does."""
        return Node.NODE if node in self.moved else node

    def enter(self, node: Node) -> list[str]:
        """What to put in front of a command of this machine that is to run in a node."""
        machine = self.machine_of(node)
        if machine is None:
            return super().enter(node)
        shell = [sys.executable, "-m", "lab.qemu.shell", str(machine.directory / SHELL_SOCKET), "--"]
        return [*shell, *self._enter_in_guest(node)]

    def _enter_in_guest(self, node: Node) -> list[str]:
        if node not in self.moved:
            return []
        return build.enter(self.prefix, node, f"{GUEST_DIRECTORY}/{node}")

    def translate(self, node: Node, argv: Sequence[str]) -> list[str]:
        """A command of this machine as it is written in a node."""
        return list(argv) if self.machine_of(node) is None else in_guest(argv)

    def run(
        self, node: Node, argv: Sequence[str], *, stdin: bytes = b"", deadline: Deadline | None = None
    ) -> Completed:
        """Run a command in a node."""
        machine = self.machine_of(node)
        if machine is None:
            return super().run(node, argv, stdin=stdin, deadline=deadline)
        command = [*self._enter_in_guest(node), *self.translate(node, argv)]
        return machine.run(command, stdin=stdin, deadline=deadline or self.deadline(10))

    def spawn(self, node: Node, argv: Sequence[str], *, name: str, stdin: bool = False) -> LocalProcess:
        """Start a command in a node."""
        machine = self.machine_of(node)
        if machine is None:
            return super().spawn(node, argv, name=name, stdin=stdin)
        command = [*self._enter_in_guest(node), *self.translate(node, argv)]
        return self.spawn_in(machine, command, name=name, stdin=stdin)

    def spawn_in(self, machine: Machine, argv: Sequence[str], *, name: str, stdin: bool = False) -> GuestProcess:
        """Start a command in a guest, in no node."""
        process = machine.spawn(argv, name=name, log=self.directory / f"logs/{name}.log", stdin=stdin)
        self._guest_processes.append((machine.spec.name, process))
        return process

    def _dial_from_node_guest(self, port: Port, entrance: Port) -> socket.socket:
        """A stream to the Enclave's port from the node guest, where this machine has none.

        Args:
            port: The Enclave's.
            entrance: A port of the node guest at which it lets this machine in, and no other.
        """
        name = f"forwarder-{port}"
        if self.process(name) is None:
            ends = (VsockAddress(VMADDR_CID_ANY, entrance), self._enclave_side(port))
            argv = [PYTHON, "-m", "lab.qemu.forward", "--peer", str(VMADDR_CID_HOST), *map(str, ends)]
            self.spawn_in(self._machines[Node.NODE], argv, name=name).wait_for_line("ready", self.deadline(20))
        return self._dial(self._devices[Node.NODE].address(entrance))

    def processes_in(self, node: Node) -> list[int]:
        """Identifiers of the processes that run in a node; in an enclave without the agent and the security module."""
        machine = self.machine_of(node)
        if machine is None:
            return super().processes_in(node)
        if node in self.moved:
            done = machine.run(["ip", "netns", "pids", build.namespace(self.prefix, node)])
            return [int(pid) for pid in done.check().stdout.split()]
        done = machine.run([PYTHON, "-I", "-S", "-c", _PROCESSES_SCRIPT])
        ours = {1} | self.security_module.processes()
        return [pid for pid in json.loads(done.check().stdout) if pid not in ours]

    # -- Relay and Enclave ---------------------------------------------------------------------------------------------

    def relay_config(self) -> dict[str, Any]:
        """A relay.toml for this laboratory."""
        config = configurations.relay_config(
            self.topology,
            enclave_address=str(self.relay_address(WIREGUARD_PORT)),
            provisioning_address=str(self.relay_address(PROVISIONING_PORT)),
            root_sha256=self.root_sha256,
            pcrs=self.enclave_measurements,
            runtime_directory="/run/wgvsock",
        )
        # Emulated processors need longer for the handshake's curve operations than the defaults allow.
        config["provisioning"] = {"exchange_timeout": 10 * self.scale, "handshake_timeout": 10 * self.scale}
        return config

    def relay_address(self, port: Port) -> StreamAddress:
        """Where the Relay dials."""
        return self._relay_side(port)

    def enclave_config(self) -> dict[str, Any]:
        """An enclave.toml for this laboratory."""
        return configurations.enclave_config(
            listen=str(VsockAddress(VMADDR_CID_ANY, WIREGUARD_PORT)),
            provisioning_listen=str(VsockAddress(VMADDR_CID_ANY, PROVISIONING_PORT)),
            parent_cid=VMADDR_CID_HOST,
            runtime_directory="/run/wgvsock",
        )

    def start_relay(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Start the production Relay in the pod."""
        if (machine := self.machine_of(Node.POD)) is None:
            return super().start_relay(config, timings=timings)
        path = f"{GUEST_DIRECTORY}/relay.toml"
        machine.channel().write_file(path, self._toml(config if config is not None else self.relay_config(), "relay"))
        if timings:
            argv = [PYTHON, "-m", "lab.relay_agent", "--config", path, "--timings", json.dumps(timings)]
        else:
            argv = ["wgvsock", "relay", "run", "--config", path]
        return self.spawn(Node.POD, argv, name="relay")

    def start_enclave(
        self, config: Mapping[str, Any] | None = None, *, timings: Mapping[str, float] | None = None
    ) -> LocalProcess:
        """Start the production Enclave with /dev/nsm, and its application, as after a boot.

        The module's registers are what a boot leaves. The production command has no option for timings: with some,
        `lab.enclave_agent` takes its place.
        """
        machine = self.enclave_guest
        self.security_module.boot()
        path = f"{GUEST_DIRECTORY}/enclave.toml"
        machine.channel().write_file(
            path, self._toml(config if config is not None else self.enclave_config(), "enclave")
        )
        if timings:
            argv = [PYTHON, "-m", "lab.enclave_agent", "--config", path, "--entropy-log", _ENTROPY_LOG]
            argv += ["--timings", json.dumps(timings), "--"]
        else:
            argv = [PYTHON, "-m", "lab.qemu.production", _ENTROPY_LOG, "enclave", "run", "--config", path, "--"]
        return self.spawn(Node.ENCLAVE, [*argv, *self.server_argv(self.topology.application)], name="enclave")

    def _toml(self, config: Mapping[str, Any], name: str) -> bytes:
        """The file's content, with a copy on this machine for the artifacts."""
        text = configurations.to_toml(config)
        (self.directory / f"{name}.toml").write_text(text)
        return text.encode()

    @property
    def entropy_log(self) -> Path:
        """The enclave's record of its entropy, fetched from the guest."""
        path = super().entropy_log
        path.write_bytes(self.enclave_guest.channel().read_file(_ENTROPY_LOG))
        return path

    # -- watching ------------------------------------------------------------------------------------------------------

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture."""
        node, interface = PACKET_POINTS[point]
        if (machine := self.machine_of(node)) is None:
            return super().capture(point)
        name = f"capture-{secrets.token_hex(4)}"  # never an earlier one's: both would read what the two have written
        records = f"{GUEST_DIRECTORY}/{name}"
        log = self.directory / f"logs/{name}.log"
        argv = [*self._enter_in_guest(node), PYTHON, "-S", "-m", "lab.qemu.watch", interface]
        environment = {"PYTHONPATH": f"/{APPLICATION_ROOT}"}
        process = machine.spawn(argv, name=f"capture at {point}", log=log, stdout=records, environment=environment)
        capture = GuestCapture(point, machine, process, records, self.deadline)
        self._captures.append(capture)
        self.clock_error = max(self.clock_error, 2 * capture.clock_error)  # two guests are off in opposite directions
        return capture

    def status(self, node: Node) -> dict[str, Any] | None:
        """What the Relay (in the pod) or the Enclave says of itself; None while it does not answer."""
        if (machine := self.machine_of(node)) is None:
            return super().status(node)
        role = {Node.POD: "relay", Node.ENCLAVE: "enclave"}[node]
        run = f"{GUEST_DIRECTORY}/{node}/run" if node in self.moved else "/run"
        try:
            answer = machine.channel().ask(f"{run}/wgvsock/{role}.sock", _STATUS_REQUEST, self.deadline(5))
        except LabError:
            return None
        _, _, body = answer.partition(b"\r\n\r\n")
        status: dict[str, Any] | None = json.loads(body) if body else None
        return status


class PairBackend(GuestBackend):
    """Two guests: the Relay's node and the enclave, with AF_VSOCK at both ends."""

    name = "pair"
    moved = frozenset({Node.POD, Node.NODE, Node.EXTERNAL})

    def relay_address(self, port: Port) -> StreamAddress:
        """The node guest's host, where the tap answers."""
        return VsockAddress(VMADDR_CID_HOST, port)

    def _start_tap(self) -> LocalProcess:
        """It listens where the node guest's dials to its host are led."""
        for port in PORTS:
            self._devices[Node.NODE].serve(port, self.directory / f"relay-{port}")
        return super()._start_tap()


def _tools(module: SecurityModule | type[SecurityModule]) -> Tools:
    """The pinned QEMU that a security module needs."""
    return Tools(unpack_group(module.packages, read_lock(), cache_directory()))


def in_guest(argv: Sequence[str]) -> list[str]:
    """A command of this machine with interpreter, entry point and the checkout's files where the guest has them."""
    checkout = str(LAB.parent) + os.sep
    places = {sys.executable: PYTHON, str(Path(sys.executable).with_name("wgvsock")): "wgvsock"}
    translated = [places.get(word, word) for word in argv]
    return [
        f"/{APPLICATION_ROOT}/{word.removeprefix(checkout)}" if word.startswith(checkout) else word
        for word in translated
    ]
