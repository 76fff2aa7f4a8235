"""How the signer becomes /dev/nsm in the enclave's guest: through a daemon in it, or as a virtio device.

The daemon (CUSE) works with every QEMU and kernel of the laboratory, and is the default. The device is served by the
kernel's own nsm driver, as on Nitro, and needs a QEMU in which another process can provide any kind of device: the
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
from lab.image.build import PYTHON
from lab.process import LocalProcess
from lab.qemu.machine import GuestVsock, Machine
from lab.virtio.nsm import DEVICE_ID
from wgvsock.addresses import Port

VARIABLE: Final = "LAB_NSM"
"""``cuse`` (the default) or ``virtio``."""

DEVICE: Final = "/dev/nsm"


class Laboratory(Protocol):
    """What a security module needs from the laboratory of its enclave. See `lab.qemu.backends.GuestBackend`."""

    directory: Path
    signer_port: Port

    @property
    def signer_socket(self) -> Path:
        """Return the address at which the signer answers for the enclave."""
        ...

    @property
    def enclave_guest(self) -> Machine:
        """The Enclave's guest."""
        ...

    def deadline(self, seconds: float) -> Deadline:
        """Return a deadline in the guests' time."""
        ...

    def process(self, name: str) -> LocalProcess | None:
        """Return the newest running process of a name, here or in a guest."""
        ...

    def spawn_here(self, argv: Sequence[str], *, name: str) -> LocalProcess:
        """Start a command on this machine."""
        ...

    def spawn_in(self, machine: Machine, argv: Sequence[str], *, name: str) -> LocalProcess:
        """Start a command in a guest."""
        ...


class SecurityModule(Protocol):
    """The connection from a signer to an enclave guest's /dev/nsm."""

    name: str
    """The value of `VARIABLE`."""

    packages: str
    """The group of pinned packages with the QEMU for it."""

    served_by: str
    """How the device is provided, in words."""

    own_processes: tuple[str, ...]
    """Names of its processes on this machine."""

    def raise_up(self) -> None:
        """Start what has to run before the guests."""

    def options(self) -> tuple[str, ...]:
        """Return QEMU's options for the enclave's guest."""

    def power_on(self, vsock: GuestVsock) -> None:
        """Prepare for the start of the enclave's guest with this vsock device."""

    def boot(self) -> None:
        """Provide /dev/nsm, with registers as after a boot.

        Raises:
            LabError: It did not appear.
        """

    def processes(self) -> set[int]:
        """Its processes in the guest."""


class CuseModule:
    """The daemon `lab.guest.cuse.nsm` in the guest, which reaches the signer over vsock.

    Args:
        lab: The enclave's laboratory.
    """

    name = "cuse"
    packages = "host"
    served_by = "by a daemon in the guest (CUSE)"
    own_processes: tuple[str, ...] = ()

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab

    def raise_up(self) -> None:
        """Nothing to start."""

    def options(self) -> tuple[str, ...]:
        """No options."""
        return ()

    def power_on(self, vsock: GuestVsock) -> None:
        """Let the guest reach the signer."""
        vsock.serve(self._lab.signer_port, self._lab.signer_socket)

    def boot(self) -> None:
        """Restart the daemon: one connection to the signer is one boot."""
        if (daemon := self._daemon()) is not None:
            daemon.kill()
            self._lab.deadline(10).poll(lambda: not has_device(self._lab), f"{DEVICE} to go")
        argv = [PYTHON, "-m", "lab.guest.cuse.nsm", "--port", str(self._lab.signer_port)]
        self._lab.spawn_in(self._lab.enclave_guest, argv, name=self.name)
        self._lab.deadline(10).poll(lambda: has_device(self._lab), DEVICE)

    def processes(self) -> set[int]:
        """The daemon."""
        daemon = self._daemon()
        return {daemon.pid} if daemon is not None else set()

    def _daemon(self) -> LocalProcess | None:
        return self._lab.process(self.name)


class VirtioModule:
    """The device that `lab.virtio.nsm` on this machine provides to QEMU, and the kernel's driver for it in the guest.

    Args:
        lab: The enclave's laboratory.
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
        """Start the device's process. It waits for QEMU, and then for the next one."""
        argv = ["--socket", str(self._socket), "--signer", str(self._lab.signer_socket)]
        process = self._lab.spawn_here([sys.executable, "-m", "lab.virtio.nsm", *argv], name=self._PROCESS)
        process.wait_for_line("ready", self._lab.deadline(20))

    def options(self) -> tuple[str, ...]:
        """Return the device, and the socket on which it is served."""
        device = f"vhost-user-test-device-pci,virtio-id={DEVICE_ID},num_vqs=1,chardev=nsm"
        return ("-chardev", f"socket,id=nsm,path={self._socket}", "-device", device)

    def power_on(self, vsock: GuestVsock) -> None:
        """Nothing to prepare: no vsock leads to the signer."""

    def boot(self) -> None:
        """Load the driver, unless it is loaded, and let the device begin another boot."""
        process = self._lab.process(self._PROCESS)
        if process is None:
            raise LabError(f"cannot begin a boot of {DEVICE}", why=f"{self._PROCESS} is not running")
        self._lab.enclave_guest.run(["modprobe", "nsm"]).check()
        self._lab.deadline(10).poll(lambda: has_device(self._lab), DEVICE)
        process.signal(signal.SIGHUP)

    def processes(self) -> set[int]:
        """An empty set, because the driver is part of the kernel."""
        return set()


_KINDS: Final[dict[str, type[CuseModule | VirtioModule]]] = {
    module.name: module for module in (CuseModule, VirtioModule)
}


def kind(name: str) -> type[CuseModule | VirtioModule]:
    """Return the security module of a name.

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
