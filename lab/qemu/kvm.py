"""KVM if it boots the pinned kernel, otherwise emulation.

That /dev/kvm exists and opens proves little: on some machines, especially virtual ones, a stock kernel hangs under it
with its processor at full load. So the pinned kernel is booted once, up to the first process of user space, and the
outcome is remembered until this machine boots again, or QEMU or the kernel changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lab.errors import LabError
from lab.image import cpio
from lab.image.build import Image
from lab.image.cpio import CharacterDevice, File
from lab.image.packages import cache_directory, read_lock, unpack_group
from lab.qemu.machine import MachineSpec, Tools, qemu_arguments

DEVICE: Final = Path("/dev/kvm")
VARIABLE: Final = "LAB_ACCEL"
"""``auto`` (the default), ``kvm`` or ``tcg``."""

BOOT_DEADLINE: Final = 10
"""Seconds: under a working KVM the boot takes less than one."""

_GRACE: Final = 5.0  # seconds for a killed QEMU to end
_KILLED: Final = (-9, 128 + 9)  # as Python and as a shell report it
_MEMORY_MIB: Final = 128
_READY: Final = "ready"
_INIT: Final = f"#!/bin/busybox sh\necho {_READY} > /dev/ttyS1\n/bin/busybox reboot -f\n"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What runs the guests' processors, and why."""

    name: Literal["kvm", "tcg"]
    why: str

    def __str__(self) -> str:
        kind = "KVM" if self.name == "kvm" else "emulated (TCG)"
        return f"{kind}: {self.why}"


Boot = Callable[[Tools, Path], str]
"""Boots a kernel under KVM. Returns why that failed, or an empty text."""


def choose(
    tools: Tools,
    kernel: Path,
    *,
    environment: Mapping[str, str] = os.environ,
    device: Path = DEVICE,
    cache: Path | None = None,
    boot: Boot | None = None,
) -> Acceleration:
    """Return KVM or emulation, as `VARIABLE` requires, otherwise by what boots here.

    Args:
        tools: Location of QEMU.
        kernel: The guests' kernel.
        environment: Holds `VARIABLE`.
        device: The kernel's KVM device.
        cache: Where the outcome is remembered. Default: the user's cache folder.
        boot: Makes the trial. Default: `boot_once`.

    Raises:
        LabError: `VARIABLE` has another value.
    """
    asked = environment.get(VARIABLE) or "auto"
    match asked:
        case "kvm" | "tcg":
            return Acceleration(asked, f"{VARIABLE}={asked}")
        case "auto":
            pass
        case _:
            raise LabError(f"{VARIABLE}={asked} is not known", fix="choose one of auto, kvm, tcg")
    if not device.exists():
        return Acceleration("tcg", f"{device} is missing")
    if not os.access(device, os.R_OK | os.W_OK):
        return Acceleration("tcg", f"{device} is forbidden to this user")
    failure = _remembered(tools, kernel, cache or cache_directory(), boot or boot_once)
    return Acceleration("tcg", failure) if failure else Acceleration("kvm", "it boots the pinned kernel")


def _remembered(tools: Tools, kernel: Path, cache: Path, boot: Boot) -> str:
    """Return the outcome of the trial, which is made now unless it was made since this machine booted."""
    record = cache / "kvm.json"
    # Both names contain the checksums of their contents.
    made_with = {"machine": _BOOT_ID.read_text().strip(), "qemu": tools.root.name, "kernel": kernel.name}
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get("made_with") != made_with:
        known = {"made_with": made_with, "failure": boot(tools, kernel)}
        new = record.with_name(f"{record.name}.{os.getpid()}")
        new.write_text(json.dumps(known))
        new.replace(record)
    return str(known["failure"])


def boot_once(tools: Tools, kernel: Path) -> str:
    """Boot the kernel with one process that reports it and ends the machine. Return why that failed, or an empty text.

    timeout(1) ends QEMU even if no parent is left: a spinning processor must not stay behind.
    """
    with tempfile.TemporaryDirectory(prefix="wgv-kvm-") as name:
        folder = Path(name)
        (folder / "initrd").write_bytes(_ramdisk())
        spec = MachineSpec("kvm", Image(kernel, ()), memory_mib=_MEMORY_MIB, accelerator="kvm")
        command = [*tools.qemu(), *qemu_arguments(spec, folder)]
        limit = ["timeout", "--signal=KILL", str(BOOT_DEADLINE)]
        try:
            done = subprocess.run(
                [*limit, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=BOOT_DEADLINE + _GRACE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{DEVICE} is here, but QEMU could not even be ended under it"
        verdict = folder / "verdict"
        if verdict.exists() and verdict.read_text().strip() == _READY:
            return ""
        if done.returncode in _KILLED:
            return f"{DEVICE} is here, but the pinned kernel did not boot under it within {BOOT_DEADLINE} s"
        reason = done.stderr.strip().splitlines()[-1:] or [f"QEMU ended with {done.returncode}"]
        return f"{DEVICE} is here, but the pinned kernel does not boot under it: {reason[0]}"


def _ramdisk() -> bytes:
    busybox = unpack_group("guest", read_lock(), cache_directory()) / "bin/busybox"
    return cpio.pack(
        {
            "bin/busybox": File(busybox.read_bytes(), 0o755),
            "init": File(_INIT.encode(), 0o755),
            "dev/console": CharacterDevice(5, 1),
            "dev/ttyS1": CharacterDevice(4, 65),
        }
    )
