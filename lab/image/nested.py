"""Additional files of `nested`'s outer guest: QEMU, KVM, and everything that the inner guest boots.

They are two more ramdisks for the outer guest. The first depends only on pinned packages and is cached: QEMU with just
the libraries and firmware that it needs, KVM's modules, the kernel and the base ramdisk. The second holds the
application ramdisk as a file. The inner guest thus boots exactly the bytes that are measured here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Final

from lab.image import cpio, modules
from lab.image.build import Image, private_loader
from lab.image.cpio import Entry, File
from lab.image.errors import ImageError
from lab.image.packages import Lock, cache_directory, read_lock, unpack_group

TOOLS: Final = Path("/opt/qemu")
"""QEMU's root in the outer guest (`lab.qemu.machine.Tools`)."""

FOLDER: Final = Path("/nested")
KERNEL: Final = FOLDER / "vmlinux"
RAMDISKS: Final = FOLDER / "ramdisks"
"""The inner guest's ramdisks, by number. They are joined in the outer guest, which then drops them."""

MODULES: Final = FOLDER / "modules"
"""KVM's modules, numbered in load order."""

APPLICATION_PART: Final = "nested-application.cpio"

_QEMU: Final = "usr/bin/qemu-system-x86_64"
_FIRMWARE: Final = (
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/pvh.bin",
)
_LOADER: Final = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def outer(inner: Image, target: Path, cache: Path | None = None) -> Image:
    """Return the image of a guest that can boot `inner` inside itself.

    Args:
        inner: Two ramdisks: base and application.
        target: Folder for everything that depends on the checkout.
        cache: Folder for everything that depends only on pins.

    Raises:
        PackageError: A pinned package is not available.
        ImageError: The packages lack something that is needed.
    """
    base, application = inner.ramdisks
    part = target / APPLICATION_PART
    part.write_bytes(cpio.pack({_name(RAMDISKS / "1"): File(application.read_bytes())}))
    return Image(inner.kernel, (*inner.ramdisks, pinned_part(inner.kernel, base, cache or cache_directory()), part))


def pinned_part(kernel: Path, base: Path, cache: Path) -> Path:
    """Return the part that outlives a run, built if it does not exist."""
    lock = read_lock()
    recipe = Path(__file__).read_bytes() + Path(modules.__file__).read_bytes() + Path(cpio.__file__).read_bytes()
    names = f"{lock.digest('host', 'kernel')} {kernel.name} {base.name}"
    path = cache / f"nested-{hashlib.sha256(recipe + names.encode()).hexdigest()[:16]}.cpio"
    if not path.exists():
        tree = {
            **_qemu(unpack_group("host", lock, cache)),
            **_modules(lock, cache),
            _name(KERNEL): File(kernel.read_bytes()),
            _name(RAMDISKS / "0"): File(base.read_bytes()),
        }
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        partial.write_bytes(cpio.pack(tree))
        partial.rename(path)
    return path


def _qemu(host: Path) -> dict[str, Entry]:
    """Return the emulator, its firmware, and the libraries that its own loader finds for it."""
    done = subprocess.run(
        [private_loader(host)[0], "--list", *private_loader(host)[1:], str(host / _QEMU)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ImageError("cannot tell which libraries QEMU needs", why=done.stderr.strip()[-400:])
    paths = [Path(word) for line in done.stdout.splitlines() for word in line.split() if word.startswith(f"{host}/")]
    files = {str(path.relative_to(host)): path for path in paths}
    files |= {name: host / name for name in (_QEMU, _LOADER, *_FIRMWARE)}
    return {
        _name(TOOLS / name): File(path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
        for name, path in files.items()
    }


def _modules(lock: Lock, cache: Path) -> dict[str, Entry]:
    (folder,) = (unpack_group("kernel", lock, cache) / "lib/modules").iterdir()
    found = modules.collect(folder, ("kvm_amd", "kvm_intel"))
    needs = {module.path: modules.closure(module, found) for module in found.values()}
    ordered = sorted(found.values(), key=lambda module: (len(needs[module.path]), module.name))
    return {
        _name(MODULES / f"{number:02}-{module.name}.ko"): File(module.data) for number, module in enumerate(ordered)
    }


def _name(path: Path) -> str:
    """Return a path of the guest as archives write it."""
    return str(path).lstrip("/")
