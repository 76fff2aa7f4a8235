"""Enclaves that start immediately: processes in network namespaces, where `lab.nitro.enclaves` boots guests.

The Relay sees a launch as it does there: the tool's answers, identities, CIDs, measurements of the actual image. An
image holds the agent's application. The vsock ports of CID C are the Unix sockets of the folder ``vsock/C``, and
`lab.programs.local_vsock` makes the Relay dial them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lab import config as configurations
from lab.errors import LabError
from lab.image.eif import EnclaveImage, pack
from lab.netns.namespaces import own_root
from lab.nitro.enclaves import Computer, Parent, Request, Wire
from lab.process import LocalProcess
from wgvsock.addresses import PROVISIONING_PORT, VMADDR_CID_HOST, WIREGUARD_PORT

_ETC: Final = ("group", "hosts", "ld.so.cache", "passwd", "protocols", "services")

_ENTER: Final = (
    'mount --bind "$0/etc" /etc && mount --bind "$0/run" /run'
    ' && echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad && exec "$@"'
)
"""Gives it its own /etc and /run, and IPv6 addresses that can be used at once."""


def write_image(path: Path, application: Sequence[str], *, name: str) -> EnclaveImage:
    """Return an image file whose enclave runs this application. Another application or name is another image."""
    image = EnclaveImage(
        kernel=b"none: the laboratory's machine has one",
        command_line="",
        ramdisks=(b"the agent of this checkout", json.dumps({"name": name, "application": list(application)}).encode()),
        metadata={"ImageName": name, "ImageVersion": "1.0"},
    )
    path.write_bytes(pack(image))
    return image


class AgentComputer:
    """The production Enclave in a namespace, with its application.

    Args:
        directory: Its own folder.
        process: The agent, or None if it has not been started.
    """

    def __init__(self, directory: Path, process: LocalProcess | None = None) -> None:
        self.directory = directory
        self._process = process

    @property
    def pid(self) -> int:
        """Process ID of the agent.

        Raises:
            LabError: It was not started.
        """
        if self._process is None:
            raise LabError("the enclave was not started")
        return self._process.pid

    def start(self, vsock: Path, module: Path, application: Sequence[str]) -> None:
        """Start the agent.

        Args:
            vsock: Folder with the sockets of its vsock ports.
            module: Its security module.
            application: Command of its application.
        """
        for folder in (vsock, self.directory / "etc", self.directory / "run"):
            folder.mkdir(parents=True)
        for name in _ETC:
            if (source := Path("/etc") / name).exists():
                shutil.copy(source, self.directory / "etc" / name)
        (self.directory / "etc/resolv.conf").touch()
        config = configurations.enclave_config(
            listen=f"unix:{vsock}/{WIREGUARD_PORT}",
            provisioning_listen=f"unix:{vsock}/{PROVISIONING_PORT}",
            parent_cid=VMADDR_CID_HOST,
            runtime_directory="/run/wgvsock",
        )
        path = self.directory / "enclave.toml"
        path.write_text(configurations.to_toml(config))
        enter = [*own_root(), "unshare", "--net", "--mount", "sh", "-c", _ENTER, str(self.directory)]
        agent = [sys.executable, "-m", "lab.programs.enclave", "--config", str(path), "--secure-module", str(module)]
        log = self.directory / "console.log"
        self._process = LocalProcess.start("enclave", [*enter, *agent, "--", *application], log=log)

    def exit_code(self) -> int | None:
        """Return None while it runs, otherwise the exit code."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """End it with everything that it has started. Its namespace disappears with the last process."""
        if self._process is not None:
            self._process.kill()

    def describe(self) -> dict[str, Any]:
        """See `LocalProcess.describe`."""
        return {} if self._process is None else self._process.describe()


class Sockets:
    """The folder with an enclave's vsock ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def describe(self) -> str:
        """Return its location."""
        return str(self.folder)


class LocalParent(Parent):
    """A parent whose enclaves are processes of this machine."""

    @property
    def vsock(self) -> Path:
        """Return the folder with the vsock ports of its enclaves, by CID."""
        return self._folder / "vsock"

    def _machine(self, folder: Path, image: EnclaveImage, cid: int, request: Request) -> tuple[Computer, Wire]:
        del image, request
        return AgentComputer(folder), Sockets(self.vsock / str(cid))

    def _boot(
        self, machine: Computer, device: Wire, enclave: str, slot: int, image: EnclaveImage, *, debug: bool
    ) -> None:
        module = self._register(machine.directory, enclave, slot, image, debug=debug)
        if not isinstance(machine, AgentComputer) or not isinstance(device, Sockets):
            raise LabError("this parent starts only agents")
        try:
            application = json.loads(image.ramdisks[1])["application"]
        except (IndexError, KeyError, ValueError) as error:
            raise LabError("the image holds no application", why=str(error)) from None
        machine.start(device.folder, module, application)

    def _find(self, state: dict[str, Any], folder: Path) -> tuple[Computer, Wire]:
        process = LocalProcess.adopt(state["machine"])
        return AgentComputer(folder, process), Sockets(Path(state["device"]))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment that makes ``nitro-cli`` use a local parent with this state."""
    return {**os.environ, "NITRO_CLI_SOCKETS_PATH": str(folder), "WGVSOCK_LAB_ENCLAVE_KIND": "namespace"}
