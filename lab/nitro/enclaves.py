"""The enclaves of one parent instance: a folder with a subfolder for each, which outlives every call of the tool."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from lab.deadline import Deadline
from lab.errors import LabError
from lab.guest.cuse.nsm import SIGNER_PORT
from lab.image.build import Image, build_base
from lab.image.eif import EifError, EnclaveImage, measure, unpack
from lab.image.packages import cache_directory, read_lock, unpack_group
from lab.nitro import failures
from lab.nitro.failures import NitroFailure
from lab.nsm.client import NsmControl
from lab.nsm.wire import control_path
from lab.process import LocalProcess
from lab.qemu.kvm import choose
from lab.qemu.machine import Machine, MachineSpec, Tools, VsockDevice
from wgvsock.addresses import Port

FIRST_CID: Final = 16
LAST_CID: Final = 0xFFFFFFFE
MEMORY_FACTOR: Final = 4
"""The tool requires four times the image's size, because the kernel unpacks the ramdisks next to themselves."""

BOOT_DEADLINE: Final = 90.0
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,150}")


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``run-enclave``. Memory is in MiB."""

    image: Path
    memory_mib: int
    cpu_count: int
    cid: int | None
    name: str | None
    debug: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources that the parent reserves for enclaves, as in the allocator's configuration."""

    memory_mib: int
    cpu_count: int


class Computer(Protocol):
    """What runs an enclave: a guest, or a substitute."""

    directory: Path

    @property
    def pid(self) -> int:
        """ID of its process."""
        ...

    def exit_code(self) -> int | None:
        """Return None while it runs, otherwise the exit code."""
        ...

    def kill(self) -> None:
        """End it. Idempotent."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what is needed to find it again."""
        ...


class Wire(Protocol):
    """What carries its vsock."""

    def stop(self) -> None:
        """End it. Idempotent."""
        ...

    def describe(self) -> Any:
        """Return what is needed to find it again."""
        ...


class Parent:
    """One parent instance.

    Args:
        folder: Its state. The enclave called NAME is reached at ``hybrid:FOLDER/NAME/u:PORT``.
        limits: Resources for enclaves.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._signer: LocalProcess | None = None  # as long as this object lives, if it started the signer

    def run(self, request: Request) -> dict[str, Any]:
        """Launch an enclave, and return what the tool prints about it.

        Raises:
            NitroFailure: As the real tool fails.
        """
        image = self._read(request)
        with self._lock():
            name, cid = self._name(request), self._cid(request)
            self._check_pool(request)
            slot = secrets.randbits(52)
            enclave = f"{self._instance()}-enc{slot:x}"
            folder = self._folder / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            machine, device = self._machine(folder, image, cid, request)
            state = {
                "EnclaveName": name,
                "EnclaveID": enclave,
                "EnclaveCID": cid,
                "NumberOfCPUs": request.cpu_count,
                "CPUIDs": list(range(1, 2 * request.cpu_count, 2)),
                "MemoryMiB": request.memory_mib,
                "Flags": "DEBUG_MODE" if request.debug else "NONE",
            }
            try:
                self._boot(machine, device, enclave, slot, image, debug=request.debug)
            except LabError as error:
                machine.kill()
                device.stop()
                shutil.rmtree(folder, ignore_errors=True)
                raise NitroFailure(failures.BOOT_FAILURE, str(error), in_enclave_process=True) from error
            state |= {"ProcessID": machine.pid, "machine": machine.describe(), "device": device.describe()}
            (folder / "state.json").write_text(json.dumps(state))
        return _public(state, with_state=False)

    def describe(self) -> list[dict[str, Any]]:
        """Return every running enclave, and remove the remains of enclaves that ended on their own."""
        found = []
        for state, machine, device in self._enclaves():
            if machine.exit_code() is None:
                found.append(_public({**state, "State": "RUNNING"}))
            else:
                self._remove(state, machine, device)
        return found

    def terminate(self, *, enclave_id: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        """End one enclave, or all.

        Raises:
            NitroFailure: No enclave has that ID or name.
        """
        ended = []
        for state, machine, device in self._enclaves():
            if enclave_id in {None, state["EnclaveID"]} and name in {None, state["EnclaveName"]}:
                self._remove(state, machine, device)
                ended.append({"EnclaveName": state["EnclaveName"], "EnclaveID": state["EnclaveID"], "Terminated": True})
        if not ended and (enclave_id or name):
            raise NitroFailure(failures.SOCKET, f"No enclave is called {enclave_id or name}.")
        return ended

    def console(self, *, enclave_id: str | None = None, name: str | None = None) -> tuple[Path, Computer]:
        """Return the file with an enclave's console, and the machine that writes it.

        Raises:
            NitroFailure: There is no such enclave, or it is not in debug mode.
        """
        for state, machine, _ in self._enclaves():
            if state["EnclaveID"] == enclave_id or state["EnclaveName"] == name:
                if state["Flags"] != "DEBUG_MODE":
                    raise NitroFailure(failures.CONSOLE_CONNECTION, "The enclave was not started with '--debug-mode'.")
                return machine.directory / "console.log", machine
        raise NitroFailure(failures.SOCKET, f"No enclave is called {enclave_id or name}.")

    def _read(self, request: Request) -> EnclaveImage:
        try:
            data = request.image.read_bytes()
        except OSError as error:
            raise NitroFailure(
                failures.FILE_OPERATION,
                f"\nFile: '{request.image}', failing operation: 'Open'. {error.strerror}",
                in_enclave_process=True,
            ) from None
        needed = MEMORY_FACTOR * len(data) >> 20
        if request.memory_mib < needed:
            asked = f"User provided `memory` is {request.memory_mib} MB"
            least = f"based on the EIF file size, the minimum memory should be {needed} MB"
            detail = f"{asked}, but {least}"
            raise NitroFailure(failures.INSUFFICIENT_MEMORY_REQUESTED, detail, in_enclave_process=True)
        try:
            return unpack(data)
        except EifError as error:
            raise NitroFailure(failures.BOOT_FAILURE, error.why, in_enclave_process=True) from error

    def _check_pool(self, request: Request) -> None:
        running = self.describe()
        if sum(one["MemoryMiB"] for one in running) + request.memory_mib > self._limits.memory_mib:
            raise NitroFailure(
                failures.INSUFFICIENT_MEMORY_AVAILABLE,
                f"User provided `memory` is {request.memory_mib} MB, which is more than the available hugepage memory.",
                in_enclave_process=True,
            )
        if sum(one["NumberOfCPUs"] for one in running) + request.cpu_count > self._limits.cpu_count:
            raise NitroFailure(
                failures.INSUFFICIENT_CPUS,
                f"User provided `cpu-count` is {request.cpu_count}, which is more than the configured CPU pool size.",
                in_enclave_process=True,
            )

    def _name(self, request: Request) -> str:
        """Return the requested name, or the image's. A number is added if it is taken."""
        name = request.name or request.image.stem
        if not _NAME.fullmatch(name):
            raise NitroFailure(failures.NAMING, f"The name {name!r} is not valid.")
        taken = {one["EnclaveName"] for one in self.describe()}
        candidates = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 1)))
        return next(candidate for candidate in candidates if candidate not in taken)

    def _cid(self, request: Request) -> int:
        taken = {one["EnclaveCID"] for one in self.describe()}
        if request.cid is not None:
            if request.cid in taken or not 3 < request.cid <= LAST_CID:
                raise NitroFailure(failures.INVALID_ARGUMENT, f"The enclave CID {request.cid} cannot be used.")
            return request.cid
        path = self._folder / "last-cid"
        cid = int(path.read_text()) + 1 if path.exists() else FIRST_CID
        while cid in taken:
            cid += 1
        path.write_text(str(cid))
        return cid

    def _machine(self, folder: Path, image: EnclaveImage, cid: int, request: Request) -> tuple[Computer, Wire]:
        """Write kernel and ramdisks as files, and return the machine that boots them."""
        kernel = folder / "kernel"
        kernel.write_bytes(image.kernel)
        ramdisks = []
        for number, data in enumerate(image.ramdisks):
            ramdisks.append(folder / f"ramdisk-{number}")
            ramdisks[-1].write_bytes(data)
        files = Image(kernel, tuple(ramdisks), image.command_line)
        tools = _tools()
        device = VsockDevice(tools, cid, folder)
        spec = MachineSpec(
            folder.name,
            files,
            vsock=device.specification,
            memory_mib=request.memory_mib,
            cpus=request.cpu_count,
            accelerator=_accelerator(tools),
        )
        return Machine(spec, tools, folder), device

    def _boot(
        self, machine: Computer, device: Wire, enclave: str, slot: int, image: EnclaveImage, *, debug: bool
    ) -> None:
        """Give the enclave its identity and measurements at the signer, and start it."""
        module = self._register(machine.directory, enclave, slot, image, debug=debug)
        if not isinstance(machine, Machine) or not isinstance(device, VsockDevice):
            raise LabError("this parent boots guests alone")
        device.start(Deadline(10))
        device.serve(Port(SIGNER_PORT), module)
        machine.start()
        machine.wait_ready(Deadline(BOOT_DEADLINE))
        machine.hang_up()

    def _register(self, folder: Path, enclave: str, slot: int, image: EnclaveImage, *, debug: bool) -> Path:
        """Register it at the signer, and return the address of its security module."""
        measurements = {number: bytes(48) if debug else value for number, value in measure(image).items()}
        module = folder / "nsm.sock"
        self.start_signer()
        module_id = f"{self._instance()}-enc{slot:016x}"
        self.signer_control().create(enclave, str(module), module_id=module_id, measurements=measurements)
        return module

    def start_signer(self) -> str:
        """Make sure that the signer of this parent's enclaves runs, and return its root's SHA-256, hex."""
        folder = self._signer_folder
        record, fingerprint = folder / "process.json", folder / "root-sha256"
        if record.exists() and LocalProcess.adopt(json.loads(record.read_text())).poll() is None:
            return fingerprint.read_text()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        argv = ["--control", control_path(folder), "--state-dir", str(folder)]
        process = LocalProcess.start("signer", [sys.executable, "-m", "lab.nsm.server", *argv], log=folder / "log")
        announced = json.loads(process.wait_for_line("root_sha256", Deadline(30)))
        self._signer = process
        fingerprint.write_text(announced["root_sha256"])
        record.write_text(json.dumps(process.describe()))
        return str(announced["root_sha256"])

    def signer_control(self) -> NsmControl:
        """Return the settings of the signer, which has to be running."""
        return NsmControl(control_path(self._signer_folder))

    @property
    def _signer_folder(self) -> Path:
        return self._folder / "signer"

    def close(self) -> None:
        """End every enclave and the signer, and remove the folder."""
        self.terminate()
        record = self._signer_folder / "process.json"
        if record.exists():
            (self._signer or LocalProcess.adopt(json.loads(record.read_text()))).kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _enclaves(self) -> list[tuple[dict[str, Any], Computer, Wire]]:
        found = []
        for path in sorted(self._folder.glob("*/state.json")):
            state = json.loads(path.read_text())
            found.append((state, *self._find(state, path.parent)))
        return found

    def _find(self, state: dict[str, Any], folder: Path) -> tuple[Computer, Wire]:
        """Take over an enclave that another call has launched."""
        tools = _tools()
        machine = Machine(MachineSpec(folder.name, Image(folder / "kernel", ())), tools, folder)
        machine.adopt(state["machine"])
        device = VsockDevice(tools, state["EnclaveCID"], folder)
        device.adopt(state["device"])
        return machine, device

    @staticmethod
    def _remove(_state: dict[str, Any], machine: Computer, device: Wire) -> None:
        machine.kill()
        device.stop()
        shutil.rmtree(machine.directory, ignore_errors=True)

    def _instance(self) -> str:
        """The parent's instance ID, invented once."""
        path = self._folder / "instance-id"
        if not path.exists():
            path.write_text(f"i-{secrets.token_hex(8)}0")
        return path.read_text()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Allow one launch at a time: a second one at the same moment fails, as with the real tool.

        Raises:
            NitroFailure: Another launch is in progress.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "launching", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NitroFailure(failures.BOOT_FAILURE, "", in_enclave_process=True) from None
        else:
            yield
        finally:
            os.close(descriptor)


def _tools() -> Tools:
    return Tools(unpack_group("host", read_lock(), cache_directory()))


def _accelerator(tools: Tools) -> str:
    """Decided by the pinned kernel, which nearly every image has: a trial per image would cost more than it tells."""
    return choose(tools, build_base(cache_directory()).kernel).name


def _public(state: dict[str, Any], *, with_state: bool = True) -> dict[str, Any]:
    """Return what the tool prints, in its order. The answer to a launch has neither state nor flags."""
    names = ["EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB"]
    names += ["State", "Flags"] if with_state else []
    return {name: state[name] for name in names}
