"""How the signer on this machine becomes /dev/nsm in the enclave's guest: by a daemon in it, or as a virtio device.

The daemon (CUSE) works with every QEMU and kernel that the laboratory knows, and is the default. The device is served
by the kernel's own nsm driver, as on Nitro, and needs a QEMU that lends a device of any kind to another process: the
pinned one of the packages' group ``host-virtio``. `VARIABLE` chooses.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from lab.deadline import Deadline
from lab.errors import LabError
from lab.process import LocalProcess
from lab.qemu.image import PYTHON
from lab.qemu.machine import GuestVsock, Machine
from lab.virtio.nsm import DEVICE_ID
from wgvsock.addresses import Port

VARIABLE: Final = "LAB_NSM"
"""``cuse`` (the default) or ``virtio``."""

DEVICE: Final = "/dev/nsm"


class Laboratory(Protocol):
    """What a security module needs of the laboratory whose enclave it is for: see `lab.qemu.backends.GuestBackend`."""

    directory: Path
    signer_port: Port

    @property
    def signer_socket(self) -> Path:
        """Where the signer answers for the enclave."""
        ...

    @property
    def enclave_guest(self) -> Machine:
        """The guest that the Enclave runs in."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """In the guests' time."""
        ...

    def process(self, name: str) -> LocalProcess | None:
        """The newest process of a name that still runs, here or in a guest."""
        ...

    def spawn_here(self, argv: Sequence[str], *, name: str) -> LocalProcess:
        """Start a command on this machine."""
        ...

    def spawn_in(self, machine: Machine, argv: Sequence[str], *, name: str) -> LocalProcess:
        """Start a command in a guest."""
        ...


class SecurityModule(Protocol):
    """Leads from a signer to an enclave guest's /dev/nsm."""

    name: str
    """The value of `VARIABLE`."""

    packages: str
    """The group of pinned packages that has the QEMU for it."""

    served_by: str
    """By what the device is there, in words."""

    own_processes: tuple[str, ...]
    """Names of its processes on this machine."""

    def raise_up(self) -> None:
        """Start what has to run before the guests."""

    def options(self) -> tuple[str, ...]:
        """What QEMU is to be told of it, for the enclave's guest."""

    def power_on(self, vsock: GuestVsock) -> None:
        """The enclave's guest is about to be started, with this vsock device."""

    def boot(self) -> None:
        """/dev/nsm is there after this, with registers as a boot leaves them.

        Raises:
            LabError: It did not come.
        """

    def processes(self) -> set[int]:
        """Its processes in the guest."""


class CuseModule:
    """The daemon `lab.cuse.nsm` in the guest, which reaches the signer over vsock.

    Args:
        lab: Whose enclave it is for.
    """

    name = "cuse"
    packages = "host"
    served_by = "by a daemon in the guest (CUSE)"
    own_processes: tuple[str, ...] = ()

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab

    def raise_up(self) -> None:
        """Nothing."""

    def options(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def power_on(self, vsock: GuestVsock) -> None:
        """Let the guest reach the signer."""
        vsock.serve(self._lab.signer_port, self._lab.signer_socket)

    def boot(self) -> None:
        """Start the daemon anew: one connection to the signer is one boot."""
        if (daemon := self._daemon()) is not None:
            daemon.kill()
            self._lab.deadline(10).poll(lambda: not has_device(self._lab), f"{DEVICE} to go")
        argv = [PYTHON, "-m", "lab.cuse.nsm", "--port", str(self._lab.signer_port)]
        self._lab.spawn_in(self._lab.enclave_guest, argv, name=self.name)
        self._lab.deadline(10).poll(lambda: has_device(self._lab), DEVICE)

    def processes(self) -> set[int]:
        """The daemon."""
        daemon = self._daemon()
        return {daemon.pid} if daemon is not None else set()

    def _daemon(self) -> LocalProcess | None:
        return self._lab.process(self.name)


class VirtioModule:
    """The device that `lab.virtio.nsm` on this machine lends to QEMU, and the kernel's driver for it in the guest.

    Args:
        lab: Whose enclave it is for.
    """

    name = "virtio"
    packages = "host-virtio"
    served_by = "by the kernel's nsm driver (virtio)"
    _PROCESS: Final = "virtio-nsm"
    own_processes: tuple[str, ...] = (_PROCESS,)

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab

    @property
    def _socket(self) -> Path:
        return self._lab.directory / "nsm/virtio.sock"

    def raise_up(self) -> None:
        """Start the device's process: it waits for QEMU, and for the next one."""
        argv = ["--socket", str(self._socket), "--signer", str(self._lab.signer_socket)]
        process = self._lab.spawn_here([sys.executable, "-m", "lab.virtio.nsm", *argv], name=self._PROCESS)
        process.wait_for_line("ready", self._lab.deadline(20))

    def options(self) -> tuple[str, ...]:
        """The device, and where it is served."""
        device = f"vhost-user-test-device-pci,virtio-id={DEVICE_ID},num_vqs=1,chardev=nsm"
        return ("-chardev", f"socket,id=nsm,path={self._socket}", "-device", device)

    def power_on(self, vsock: GuestVsock) -> None:
        """Nothing: no vsock leads to the signer."""

    def boot(self) -> None:
        """Load the driver, where it is not loaded yet, and have the device begin another boot."""
        process = self._lab.process(self._PROCESS)
        if process is None:
            raise LabError(f"cannot begin a boot of {DEVICE}", why=f"{self._PROCESS} does not run")
        self._lab.enclave_guest.run(["modprobe", "nsm"]).check()
        self._lab.deadline(10).poll(lambda: has_device(self._lab), DEVICE)
        process.signal(signal.SIGHUP)

    def processes(self) -> set[int]:
        """None: the driver is the kernel's."""
        return set()


_KINDS: Final[dict[str, type[CuseModule | VirtioModule]]] = {
    module.name: module for module in (CuseModule, VirtioModule)
}


def kind(name: str) -> type[CuseModule | VirtioModule]:
    """The one of a name.

    Raises:
        LabError: There is none.
    """
    if name not in _KINDS:
        raise LabError(f"there is no security module {name!r}", why=f"{VARIABLE} is {' or '.join(_KINDS)}")
    return _KINDS[name]


def asked_for(environment: Mapping[str, str] = os.environ) -> str:
    """The name that `VARIABLE` has."""
    return environment.get(VARIABLE) or CuseModule.name


def has_device(lab: Laboratory) -> bool:
    """Whether the guest has the device node."""
    return lab.enclave_guest.run(["test", "-c", DEVICE]).exit_code == 0
