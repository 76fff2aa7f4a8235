"""The backend `nested`: a guest that has /dev/vhost-vsock, and inside it the enclave as another guest.

::

     outer guest                                                                            this machine
    ┌─────────────────────────────────────────────────────────────────────────────────┐   ┌────────────────┐
    │ external ── node ── pod: wgvsock relay run                inner guest           │   │                │
    │                           │                              ┌────────────────────┐ │   │                │
    │                           └─► AF_VSOCK 16:51820 ─ vhost ─┤ wgvsock enclave run│ │   │                │
    │                               vsockmon0 watches          │ /dev/nsm (CUSE)    │ │   │                │
    │ lab.qemu.forward, for CID 16 ◄── AF_VSOCK 2:9001 ────────┤                    │ │   │                │
    │   └─► virtio-vsock 2:9001 ──────────────────────────────────────────────────────┼─┼─► lab.nsm.server │
    │ lab.guest.nested_ports ◄── console, verdict, requests ───┴────────────────────┘ │   │                │
    └─────────────────────────────────────────────────────────────────────────────────┘   └────────────────┘

Only this backend uses the kernel's vhost-vsock on a machine without it. The Relay dials the enclave's CID directly, as
on a parent instance. There is no tap between the two: the kernel's own monitor device is the vsock point.

If the outer guest is emulated, the inner one is not emulated within the emulation: QEMU also emulates AMD's
virtualization extension (SVM), so that the outer guest's kernel has KVM.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lab.deadline import Deadline
from lab.errors import LabError
from lab.guest import nested_ports
from lab.guest.agent import PORT_NAME, SHELL_PORT_NAME
from lab.image import nested as nested_image
from lab.image.build import APPLICATION_ROOT, PYTHON, Image, build_base
from lab.image.nested import FOLDER, KERNEL, MODULES, RAMDISKS, TOOLS
from lab.image.packages import cache_directory
from lab.laboratory import PORTS
from lab.process import LocalProcess
from lab.qemu import nested_monitor
from lab.qemu.backends import PairBackend
from lab.qemu.capture import GuestCapture
from lab.qemu.channel import GuestProcess
from lab.qemu.machine import (
    AGENT_SOCKET,
    SHELL_SOCKET,
    GuestVsock,
    Machine,
    MachineSpec,
    Tools,
    VhostVsock,
    hardware_arguments,
)
from lab.qemu.nodes import GUEST_DIRECTORY
from lab.qemu.security_module import VARIABLE, CuseModule
from lab.topology import Node, Point
from wgvsock.addresses import VMADDR_CID_ANY, VMADDR_CID_HOST, Cid, Port, StreamAddress, VsockAddress

_MEMORY_MIB: Final = 2048
"""Memory of the outer guest: its own files and those of the inner one, 300 MiB in all, and the inner guest's memory."""

_INNER_MEMORY_MIB: Final = 384
_CPUS: Final = 2
_INNER_OPTIONS: Final = "pci=lastbus=0"
"""For the inner guest's kernel: a search for further PCI buses takes 16,000 port accesses, each leaving KVM."""

_START: Final = ("-I", "-S", "-c", "import asyncio")
_TAP: Final = "tap"
_ENTRANCES: Final = 10_000
"""Offset of the outer guest's ports that forward the host's connections to the Enclave."""

_RECORDS: Final = f"{GUEST_DIRECTORY}/vsock"
_INITRD: Final = FOLDER / "initrd"

_CHANNELS: Final = {"console": "console.log", "verdict": "verdict", "agent": AGENT_SOCKET, "shell": SHELL_SOCKET}
"""The inner guest's channels and their names in its folder on this machine, as in `Machine`."""

_FILES: Final = frozenset({"console", "verdict"})

_PREPARE: Final = f"""
set -e
modprobe vhost_vsock
for module in {MODULES}/*; do insmod $module 2>/dev/null || true; done  # one of KVM's two is for the other vendor
echo {_INNER_MEMORY_MIB // 2} > /proc/sys/vm/nr_hugepages
cat {RAMDISKS}/* > {_INITRD}
rm -r {RAMDISKS}
ip link add {nested_monitor.INTERFACE} type vsockmon
ip link set {nested_monitor.INTERFACE} up
test ! -c /dev/kvm || echo kvm
"""
"""The outer kernel faults in each page of the inner guest's memory, which is slow in emulation. Hence large pages."""


class InnerMachine(Machine):
    """The guest inside the guest. Its channels end in its folder on this machine, so only QEMU's life cycle differs.

    Args:
        spec: What to boot. Kernel and ramdisks are those that the outer guest holds.
        tools: Location of QEMU on this machine.
        directory: On this machine.
        outer: The guest that it runs in.
    """

    def __init__(self, spec: MachineSpec, tools: Tools, directory: Path, outer: Machine) -> None:
        super().__init__(spec, tools, directory)
        self._outer = outer

    def start(self) -> None:
        """Start QEMU in the outer guest. Returns before the inner one has booted."""
        (self.directory / _CHANNELS["verdict"]).write_bytes(b"")
        log = self.directory / "qemu.log"
        self._qemu = self._outer.spawn(inner_command(self.spec), name=f"QEMU {self.spec.name}", log=log)

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Take over the machine that another process of the laboratory started."""
        super().adopt({**description, "qemu": None})
        if description["qemu"]:
            self._qemu = self._outer.adopt_process(description["qemu"], self.directory / "qemu.log")


class InnerVsockDevice:
    """The inner guest's vsock, served by the outer guest's kernel. See `lab.qemu.machine.GuestVsock`.

    Args:
        cid: The inner guest's.
        outer: The guest that it runs in.
        way_out: The outer guest's own vsock.
        log: For the forwarder.
    """

    def __init__(self, cid: Cid, outer: Machine, way_out: GuestVsock, log: Path) -> None:
        self._cid = cid
        self._outer = outer
        self._way_out = way_out
        self._log = log
        self._forwarder: GuestProcess | None = None

    @property
    def specification(self) -> VhostVsock:
        """Return QEMU's options for the device."""
        return VhostVsock(self._cid)

    def start(self, deadline: Deadline) -> None:
        """Nothing to do: QEMU itself opens the device."""

    def check(self) -> None:
        """Nothing to check: the outer guest's kernel serves it."""

    def address(self, port: Port) -> StreamAddress:
        """Return the address in the outer guest, the only machine that reaches it."""
        return VsockAddress(self._cid, port)

    def serve(self, port: Port, path: Path) -> None:
        """Forward the inner guest's connections to a Unix socket of this machine: two hops, both over vsock."""
        self._way_out.serve(port, path)
        listen, upstream = VsockAddress(VMADDR_CID_ANY, port), VsockAddress(VMADDR_CID_HOST, port)
        argv = [PYTHON, "-m", "lab.qemu.forward", "--peer", str(self._cid), str(listen), str(upstream)]
        self._forwarder = self._outer.spawn(argv, name="forwarder", log=self._log)
        self._forwarder.wait_for_line("ready", Deadline(20, scale=self._outer.scale))

    def stop(self) -> None:
        """End the forwarder. Idempotent."""
        if self._forwarder is not None:
            self._forwarder.kill()

    def describe(self) -> dict[str, Any] | None:
        """Return what `adopt` needs, as JSON values."""
        return self._forwarder.describe() if self._forwarder is not None else None

    def adopt(self, description: Mapping[str, Any] | None) -> None:
        """Take over what another process of the laboratory started."""
        self._forwarder = self._outer.adopt_process(description, self._log) if description else None


class NestedBackend(PairBackend):
    """The node is a guest with the kernel's vhost-vsock, the enclave a guest inside it. See `lab.backend.Backend`."""

    name = "nested"
    takes = "some minutes: one guest emulates another"
    boot_deadline = 300.0
    inner_accelerator = "tcg"

    def __init__(self, identity: str, **options: Any) -> None:
        super().__init__(identity, **options)
        if self.security_module.name != CuseModule.name:
            raise LabError(
                f"nested has no {self.security_module.name} security module",
                why="the enclave's QEMU runs in the outer guest, where the signer's process does not",
                fix=f"without {VARIABLE}",
            )

    @classmethod
    def prepare(cls) -> None:
        """Fill the cache, including the outer guest's additional files."""
        super().prepare()
        base = build_base(cache_directory())
        nested_image.pinned_part(base.kernel, base.ramdisk, cache_directory())

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        return {**super().state(), "inner_accelerator": self.inner_accelerator}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over both guests and what runs in them."""
        self.inner_accelerator = state["inner_accelerator"]
        super().adopt(state)

    # -- the two guests ------------------------------------------------------------------------------------------------

    def _build_image(self) -> Image:
        image = super()._build_image()
        return replace(image, command_line=f"{image.command_line} {_INNER_OPTIONS}")

    def _guests(self) -> dict[Node, Cid]:
        guests = super()._guests()
        return {node: guests[node] for node in (Node.NODE, Node.ENCLAVE)}

    def _boot(self) -> None:
        """Start them in order, because one is inside the other."""
        for node, cid in self._guests().items():
            self._start(node, cid)
            self._machines[node].wait_ready(Deadline(self.boot_deadline))
            if node is Node.NODE:
                self._prepare_outer()
        self.scale = max(self._start_ratio(), *(machine.scale for machine in self._machines.values()))

    def _start_ratio(self) -> float:
        """Return how much longer a command takes to start in the inner guest: page faults weigh more than loops."""
        inner = self._machines[Node.ENCLAVE]
        there = _seconds(lambda: inner.run([PYTHON, *_START], deadline=Deadline(60, scale=inner.scale)).check())
        here = _seconds(lambda: subprocess.run([sys.executable, *_START], check=True))
        return there / here

    def _prepare_outer(self) -> None:
        outer = self._machines[Node.NODE]
        prepared = outer.run(["sh", "-c", _PREPARE], deadline=Deadline(30, scale=outer.scale)).check()
        self.inner_accelerator = prepared.stdout.decode().strip() or "tcg"
        argv = [PYTHON, "-m", "lab.guest.nested_ports", str(FOLDER), *_CHANNELS]
        self.spawn_in(outer, argv, name="ports").wait_for_line(nested_ports.READY, Deadline(20, scale=outer.scale))

    def _place(self, node: Node, cid: Cid) -> None:
        if node is Node.NODE:
            super()._place(node, cid)
            return
        outer, way_out = self._machines[Node.NODE], self._devices[Node.NODE]
        self._devices[node] = InnerVsockDevice(cid, outer, way_out, self.directory / "logs/forwarder.log")
        self._machines[node] = InnerMachine(self._specification(node), self._tools, self._inner_folder, outer)

    def _specification(self, node: Node) -> MachineSpec:
        specification = super()._specification(node)
        if node is Node.ENCLAVE:
            accelerator = self.inner_accelerator
            return replace(specification, accelerator=accelerator, memory_mib=_INNER_MEMORY_MIB, huge_pages=True)
        return replace(
            specification,
            image=nested_image.outer(self._image, self.directory),
            memory_mib=_MEMORY_MIB,
            cpus=_CPUS,
            extra=outer_ports(self._inner_folder),
        )

    @property
    def _inner_folder(self) -> Path:
        folder = self.directory / f"vm-{Node.ENCLAVE}"
        folder.mkdir(exist_ok=True)
        return folder

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """End the inner guest and boot it again, with another CID if requested.

        Raises:
            LabError: Another image is requested: the outer guest holds only one.
        """
        if image is not None:
            raise LabError("nested cannot boot another image", why="the outer guest holds only one", fix="LAB=pair")
        super().reboot_enclave(cid=cid)
        if isinstance(self.tap, nested_monitor.VsockMonitor):
            self.tap.follow(self.enclave_cid)

    def dial_enclave(self, port: Port) -> socket.socket:
        """Open a stream to the enclave from the outer guest, its parent, which is reached through its own vsock."""
        return self._dial_from_node_guest(port, Port(port + _ENTRANCES))

    @property
    def boot_seconds(self) -> dict[str, float]:
        """Return how long each guest took from QEMU's start until it was ready."""
        return {machine.spec.name: machine.boot_seconds for machine in self._machines.values()}

    # -- the vsock point -----------------------------------------------------------------------------------------------

    def relay_address(self, port: Port) -> StreamAddress:
        """Return the inner guest itself."""
        return self._enclave_side(port)

    def _start_tap(self) -> LocalProcess:
        outer = self._machines[Node.NODE]
        argv = [PYTHON, f"/{APPLICATION_ROOT}/lab/guest/recorder.py", nested_monitor.INTERFACE]
        process = outer.spawn(argv, name=_TAP, log=self.directory / f"logs/{_TAP}.log", stdout=_RECORDS)
        self._guest_processes.append((outer.spec.name, process))
        return process

    def _connect_controls(self) -> None:
        super()._connect_controls()
        process = self.process(_TAP)
        if isinstance(process, GuestProcess):
            capture = GuestCapture(Point.VSOCK, self._machines[Node.NODE], process, _RECORDS, self.deadline)
            recording = self.directory / "vsock.pcap"
            self.tap = nested_monitor.VsockMonitor(capture, recording, self.enclave_cid, PORTS)


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of several calls. The first includes the emulator's translation."""
    taken = []
    for _ in range(2):
        start = time.monotonic()
        work()
        taken.append(time.monotonic() - start)
    return min(taken)


def outer_ports(folder: Path) -> tuple[str, ...]:
    """Return QEMU's options for the outer guest's ports to the inner guest's channels in its folder."""
    options: list[str] = []
    for name, file in _CHANNELS.items():
        port = nested_ports.PREFIX + name
        place = f"path={folder / file}"
        kind = f"file,id={port},{place},append=on" if name in _FILES else f"socket,id={port},{place},server=on,wait=off"
        options += ["-chardev", kind, "-device", f"virtserialport,chardev={port},name={port}"]
    return tuple(options)


def inner_command(spec: MachineSpec) -> list[str]:
    """Return the inner guest's QEMU as the outer guest runs it."""
    image = Image(KERNEL, (), spec.image.command_line)
    channels = [option for name in _CHANNELS for option in ("-chardev", f"socket,id={name},path={FOLDER}/{name}.sock")]
    return [
        *Tools(TOOLS).qemu(),
        *hardware_arguments(replace(spec, image=image), _INITRD),
        *channels,
        *("-serial", "chardev:console", "-serial", "chardev:verdict"),
        *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        *("-device", f"virtserialport,chardev=shell,name={SHELL_PORT_NAME}"),
    ]
