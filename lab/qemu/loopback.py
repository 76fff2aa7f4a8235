"""The backend `loopback`: all four nodes in one guest, and real AF_VSOCK between two of them, the quick check of it.

::

     one guest                                                                          this machine
    ┌──────────────────────────────────────────────────────────────────────────────┐   ┌────────────────┐
    │ external ── node ── pod: wgvsock relay run ──► tap ──► wgvsock enclave run   │   │                │
    │                            AF_VSOCK, CID 1, port 61820     AF_VSOCK, CID 1   │   │                │
    │                                                            /dev/nsm (CUSE) ──┼───┼► lab.nsm.server│
    └──────────────────────────────────────────────────────────────────────────────┘   └────────────────┘

The kernel's vsock_loopback carries what is dialled at VMADDR_CID_LOCAL; the guest's virtio device, loaded beside it,
what goes to the host: to the signer, and the tap's control. AF_VSOCK knows no network namespaces before Linux 7.2 (and
shares one space by default since), so that the four nodes see one another's ports.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lab.backend import PacketCapture
from lab.errors import LabError
from lab.process import LocalProcess
from lab.qemu.backends import GUEST_DIRECTORY, NODE_CID, PORTS, GuestBackend
from lab.qemu.capture import GuestCapture
from lab.qemu.image import PYTHON, Image
from lab.qemu.machine import MachineSpec, VsockDevice
from lab.tap import TapControl, TapRoute
from lab.topology import Node, Point
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
"""vsock port of the guest at which the tap is controlled."""

_TAP_PORTS: Final = 10_000
"""The tap listens so many ports above the Enclave, which has the same CID."""

_FORWARDED_PORTS: Final = 20_000
"""So many above it are the ports that lead past the tap: the guest's to the Enclave, the host's to a test."""

_MEMORY_MIB: Final = 512
_CPUS: Final = 2  # under emulation each is a thread of its own

_RECORDING: Final = f"{GUEST_DIRECTORY}/vsock.pcap"


class GuestTapControl(TapControl):
    """Client of a tap that runs in a guest, and whose recording has to be brought here.

    Args:
        control: Where the tap is controlled.
        recording: The copy on this machine.
        fetch: Gives the recording's bytes from an offset on.
    """

    def __init__(self, control: HybridVsockAddress, recording: Path, fetch: Callable[[int], bytes]) -> None:
        super().__init__(control, recording)
        self._fetch = fetch

    def refresh(self) -> None:
        """Bring the copy up to date."""
        with self.recording.open("ab") as copy:
            copy.write(self._fetch(copy.tell()))


class LoopbackBackend(GuestBackend):
    """Everything in one guest; see `lab.backend.Backend`."""

    name = "loopback"
    moved = frozenset(Node)

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
        argv = [PYTHON, "-m", "lab.tap", "--recording", _RECORDING, "--control", str(control), *map(str, routes)]
        return self.spawn_in(self.enclave_guest, argv, name="tap")

    def _connect_controls(self) -> None:
        super()._connect_controls()
        if Node.NODE in self._devices:  # an attached laboratory gets them later, see `adopt`
            machine = self.enclave_guest
            control = self._device.address(CONTROL_PORT)
            self.tap = GuestTapControl(
                control, self.directory / "vsock.pcap", lambda offset: machine.channel().read_file(_RECORDING, offset)
            )

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the guest and what runs in it, the tap too."""
        super().adopt(state)
        self._connect_controls()

    def relay_address(self, port: Port) -> VsockAddress:
        """Where the Relay dials, and the tap listens."""
        return VsockAddress(VMADDR_CID_LOCAL, Port(port + _TAP_PORTS))

    def _enclave_side(self, port: Port) -> VsockAddress:
        return VsockAddress(VMADDR_CID_LOCAL, port)

    def dial_enclave(self, port: Port) -> socket.socket:
        """A stream to the enclave past the tap; it comes from its parent's CID, which is the guest's own."""
        return self._dial_from_node_guest(port, Port(port + _FORWARDED_PORTS))

    def divert(self, port: Port, listener: Path | None) -> None:
        """Lead the Relay's next connections elsewhere: the tap reaches a socket of this process over vsock."""
        if listener is None:
            self.tap.reroute(port, self._enclave_side(port))
        else:
            exit_ = Port(port + _FORWARDED_PORTS)
            self._device.serve(exit_, listener)
            self.tap.reroute(port, VsockAddress(VMADDR_CID_HOST, exit_))

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """Refused: the Relay is in the same guest.

        Raises:
            LabError: Always.
        """
        del cid, image
        raise LabError("the enclave cannot boot again by itself", why="all machines are one guest", fix="LAB=pair")

    def enclave_config(self) -> dict[str, Any]:
        """An enclave.toml for this laboratory: its parent is in the same guest."""
        return {**super().enclave_config(), "parent_cid": VMADDR_CID_LOCAL}

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture; the tap's clock is the captures', and what is found out about it holds for both."""
        capture = super().capture(point)
        if isinstance(capture, GuestCapture):
            self.tap.clock_offset = capture.clock_offset
        return capture

    def keep_artifacts(self, folder: Path) -> None:
        """Also what the tap has recorded in the guest."""
        with contextlib.suppress(LabError):
            self.tap.refresh()
        super().keep_artifacts(folder)
