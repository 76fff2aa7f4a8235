"""The backend `loopback`: all four nodes in one guest, and real AF_VSOCK between two of them, as a quick check.

::

     one guest                                                                          this machine
    ┌──────────────────────────────────────────────────────────────────────────────┐   ┌────────────────┐
    │ external ── node ── pod: wgvsock relay run ──► tap ──► wgvsock enclave run   │   │                │
    │                            AF_VSOCK, CID 1, port 61820     AF_VSOCK, CID 1   │   │                │
    │                                                            /dev/nsm (CUSE) ──┼───┼► lab.nsm.server│
    └──────────────────────────────────────────────────────────────────────────────┘   └────────────────┘

The kernel's vsock_loopback carries connections to VMADDR_CID_LOCAL. The guest's virtio device, loaded beside it,
carries those to the host: to the signer, and the tap's control. AF_VSOCK knows no network namespaces before Linux 7.2
(and shares one space by default since), so the four nodes see one another's ports.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError
from lab.image.build import PYTHON, Image
from lab.laboratory import PORTS
from lab.process import LocalProcess
from lab.qemu.backends import NODE_CID, GuestBackend
from lab.qemu.capture import GuestCapture
from lab.qemu.machine import MachineSpec, VsockDevice
from lab.qemu.nodes import GUEST_DIRECTORY
from lab.topology import TOPOLOGY, Node, Point
from lab.watch.capture import PacketCapture
from lab.watch.tap import TapControl, TapRoute
from wgvsock.addresses import (
    VMADDR_CID_ANY,
    VMADDR_CID_HOST,
    VMADDR_CID_LOCAL,
    Cid,
    HybridVsockAddress,
    Port,
    VsockAddress,
)

CONTROL_PORT: Final = Port(9100)
"""vsock port of the guest on which the tap is controlled."""

_TAP_PORTS: Final = 10_000
"""Offset of the tap's port from the Enclave's, because both have the same CID."""

_FORWARDED_PORTS: Final = 20_000
"""Offset of the ports that bypass the tap: the guest's to the Enclave, the host's to a test."""

_MEMORY_MIB: Final = 512
_CPUS: Final = 2  # under emulation each is a separate thread

_RECORDING: Final = f"{GUEST_DIRECTORY}/vsock.pcap"


class GuestTapControl(TapControl):
    """Client of a tap that runs in a guest, and whose recording has to be fetched.

    Args:
        control: Address of the tap's control socket.
        recording: The copy on this machine.
        fetch: Returns the recording's bytes from an offset on.
    """

    def __init__(self, control: HybridVsockAddress, recording: Path, fetch: Callable[[int], bytes]) -> None:
        super().__init__(control, recording)
        self._fetch = fetch

    def refresh(self) -> None:
        """Update the copy."""
        with self.recording.open("ab") as copy:
            copy.write(self._fetch(copy.tell()))


class LoopbackBackend(GuestBackend):
    """Everything in one guest. See `lab.backend.Backend`."""

    name = "loopback"
    moved = frozenset(TOPOLOGY.nodes)

    def _guests(self) -> dict[Node, Cid]:
        return {Node.NODE: NODE_CID}

    def _vsock_device(self, cid: Cid, folder: Path) -> VsockDevice:
        self._device = VsockDevice(self._tools, cid, folder)
        return self._device

    def _specification(self, node: Node) -> MachineSpec:
        return replace(super()._specification(node), memory_mib=_MEMORY_MIB, cpus=_CPUS)

    def _raise_nodes(self) -> None:
        self.enclave_guest.run(["modprobe", "vsock_loopback"]).check()
        super()._raise_nodes()

    def _start_tap(self) -> LocalProcess:
        routes = [TapRoute(port, self.relay_address(port), self._enclave_side(port)) for port in PORTS]
        control = VsockAddress(VMADDR_CID_ANY, CONTROL_PORT)
        argv = [PYTHON, "-m", "lab.watch.tap", "--recording", _RECORDING, "--control", str(control), *map(str, routes)]
        return self.spawn_in(self.enclave_guest, argv, name="tap")

    def _connect_controls(self) -> None:
        super()._connect_controls()
        machine = self.enclave_guest
        control = self._device.address(CONTROL_PORT)
        self.tap = GuestTapControl(
            control, self.directory / "vsock.pcap", lambda offset: machine.channel().read_file(_RECORDING, offset)
        )

    def relay_address(self, port: Port) -> VsockAddress:
        """Return the address that the Relay dials and the tap listens on."""
        return VsockAddress(VMADDR_CID_LOCAL, Port(port + _TAP_PORTS))

    def _enclave_side(self, port: Port) -> VsockAddress:
        return VsockAddress(VMADDR_CID_LOCAL, port)

    def dial_enclave(self, port: Port) -> socket.socket:
        """Open a stream to the enclave that bypasses the tap. It comes from its parent's CID, the guest's own."""
        return self._dial_from_node_guest(port, Port(port + _FORWARDED_PORTS))

    def divert(self, port: Port, listener: Path | None) -> None:
        """Redirect the Relay's next connections. The tap reaches a socket of this process over vsock."""
        if listener is None:
            self.tap.reroute(port, self._enclave_side(port))
        else:
            exit_ = Port(port + _FORWARDED_PORTS)
            self._device.serve(exit_, listener)
            self.tap.reroute(port, VsockAddress(VMADDR_CID_HOST, exit_))

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """Refuse, because the Relay is in the same guest.

        Raises:
            LabError: Always.
        """
        del cid, image
        raise LabError("the enclave cannot boot again alone", why="all machines are one guest", fix="LAB=pair")

    def enclave_config(self) -> dict[str, Any]:
        """Return an enclave.toml for this laboratory, whose parent is in the same guest."""
        return {**super().enclave_config(), "parent_cid": VMADDR_CID_LOCAL}

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture. The tap shares the captures' clock, and a measured offset holds for both."""
        capture = super().capture(point)
        if isinstance(capture, GuestCapture):
            self.tap.clock_offset = capture.clock_offset
        return capture

    def keep_artifacts(self, folder: Path) -> None:
        """Includes what the tap has recorded in the guest."""
        with contextlib.suppress(LabError):
            self.tap.refresh()
        super().keep_artifacts(folder)
