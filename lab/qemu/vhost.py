"""The backend `vhost`: the enclave's vsock is the kernel's own vhost-vsock, as on a machine that runs virtual machines.

::

     this machine                                                         enclave guest
    ┌───────────────────────────────────────────────────────────────┐   ┌────────────────────┐
    │ pod: wgvsock relay run ──► tap ──► AF_VSOCK, CID of the guest ├──►│ wgvsock enclave run│
    │ lab.nsm.server ◄── lab.qemu.forward, AF_VSOCK, for that CID   │◄──┤ /dev/nsm (CUSE)    │
    └───────────────────────────────────────────────────────────────┘   └────────────────────┘

Only here does the laboratory use this machine's AF_VSOCK. If the module vsock_loopback is loaded, the Relay dials the
tap over AF_VSOCK as well, otherwise over a Unix socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from lab.deadline import Deadline
from lab.errors import LabError, Unavailable
from lab.guest.cuse.nsm import SIGNER_PORT
from lab.image.build import Image
from lab.laboratory import PORTS
from lab.process import LocalProcess
from lab.qemu.backends import GuestBackend
from lab.qemu.machine import GuestVsock, VhostVsock
from wgvsock.addresses import (
    VMADDR_CID_ANY,
    VMADDR_CID_LOCAL,
    Cid,
    Port,
    StreamAddress,
    UnixAddress,
    VsockAddress,
)

DEVICE: Final = Path("/dev/vhost-vsock")
LOOPBACK_MODULE: Final = Path("/sys/module/vsock_loopback")

_VHOST_VSOCK_SET_GUEST_CID: Final = 0x4008AF60  # _IOW(0xAF, 0x60, __u64), linux/vhost.h
_FIRST_CID: Final = 1 << 16
_CIDS: Final = 1 << 30
_FIRST_PORT: Final = 1 << 16
_PORTS: Final = 1 << 30
_ATTEMPTS: Final = 16


class VhostBackend(GuestBackend):
    """The enclave is a guest on the kernel's vhost-vsock, and everything else stays on this machine."""

    name = "vhost"

    def __init__(self, identity: str, **options: Any) -> None:
        super().__init__(identity, **options)
        self._set_first_port(_FIRST_PORT + secrets.randbelow(_PORTS))
        self._loopback = LOOPBACK_MODULE.exists()

    def _set_first_port(self, port: int) -> None:
        """The ports of this laboratory. The whole machine shares one range."""
        self._first_port = port
        self.signer_port = Port(port + SIGNER_PORT)

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """Requires permission to use the device, and what every guest needs."""
        return device_unavailable(DEVICE) or super().unavailable()

    def state(self) -> dict[str, Any]:
        """Return what `attach` needs, as JSON values."""
        return {**super().state(), "first_port": self._first_port}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the guest and what runs in it."""
        self._set_first_port(state["first_port"])
        super().adopt(state)

    def up(self) -> None:
        """Choose a CID, then start everything as with any guest."""
        self.enclave_cid = free_cid()
        super().up()

    def reboot_enclave(self, *, cid: Cid | None = None, image: Image | None = None) -> None:
        """Boot again as with any guest. The tap is told the enclave's new address."""
        super().reboot_enclave(cid=cid, image=image)
        for port in PORTS:
            self.tap.reroute(port, self._enclave_side(port))

    def _vsock_device(self, cid: Cid, folder: Path) -> GuestVsock:
        return KernelVsockDevice(cid, folder)

    def _relay_side(self, port: Port) -> StreamAddress:
        if self._loopback:
            return VsockAddress(VMADDR_CID_LOCAL, Port(self._first_port + port))
        return super()._relay_side(port)


class KernelVsockDevice:
    """The host's side of a guest on vhost-vsock. See `lab.qemu.machine.GuestVsock`.

    Args:
        cid: The guest's.
        directory: For logs.
    """

    def __init__(self, cid: Cid, directory: Path) -> None:
        self._cid = cid
        self._directory = directory
        self._forwarder: LocalProcess | None = None

    @property
    def specification(self) -> VhostVsock:
        """Return QEMU's options for the device."""
        return VhostVsock(self._cid)

    def start(self, deadline: Deadline) -> None:
        """Nothing to do: QEMU itself opens the device."""
        del deadline
        self._directory.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Nothing to check: the kernel serves it."""

    def address(self, port: Port) -> VsockAddress:
        """Return the address at which the host reaches a port of the guest."""
        return VsockAddress(self._cid, port)

    def serve(self, port: Port, path: Path) -> None:
        """Forward the guest's connections to a Unix socket, with a process that accepts only this guest."""
        ends = (VsockAddress(VMADDR_CID_ANY, port), UnixAddress(str(path)))
        argv = [sys.executable, "-m", "lab.qemu.forward", "--peer", str(self._cid), *map(str, ends)]
        self._forwarder = LocalProcess.start("forwarder", argv, log=self._directory / "forward.log")
        self._forwarder.wait_for_line("ready", Deadline(20))

    def describe(self) -> dict[str, Any] | None:
        """Return what `adopt` needs, as JSON values."""
        return self._forwarder.describe() if self._forwarder is not None else None

    def adopt(self, description: Mapping[str, Any] | None) -> None:
        """Take over the process that another process of the laboratory started."""
        self._forwarder = LocalProcess.adopt(description) if description else None

    def stop(self) -> None:
        """End it. Idempotent."""
        if self._forwarder is not None:
            self._forwarder.kill()


def device_unavailable(device: Path) -> Unavailable | None:
    """Return why vhost-vsock cannot be used, or None. Opening its node makes the kernel load the module."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            return Unavailable("missing", str(device), "load the module: modprobe vhost_vsock")
        return Unavailable("forbidden", str(device), f"let this user read and write it ({error.strerror})")
    return None


def free_cid(claim: Callable[[Cid], bool] | None = None) -> Cid:
    """Return a CID that no guest of this machine has.

    Args:
        claim: Returns whether the kernel accepts one for a guest. Default: `claim_cid`.

    Raises:
        LabError: None was found.
    """
    claim = claim or claim_cid
    for _ in range(_ATTEMPTS):
        cid = Cid(_FIRST_CID + secrets.randbelow(_CIDS))
        if claim(cid):
            return cid
    raise LabError("no free CID was found", why=f"{_ATTEMPTS} random ones are taken")


def claim_cid(cid: Cid) -> bool:
    """Assign a CID to a guest that ends at once. False: another guest has it.

    Raises:
        LabError: The kernel refused for another reason.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _VHOST_VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise LabError(f"cannot use the CID {cid}", why=error.strerror or str(error)) from None
    finally:
        os.close(descriptor)
    return True
