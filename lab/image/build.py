"""A guest's files: an uncompressed kernel, a base ramdisk (userland) and an application ramdisk (wgvsock and lab).

The split is that of an enclave image file: PCR1 measures the base together with the kernel, PCR2 the application. Base
and kernel depend on pinned packages only, and are cached under a name that identifies these. The application follows
the checkout and is packed for each run. The kernel unpacks both archives in order.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lab
import wgvsock
from lab.image import cpio, modules, vmlinux
from lab.image.cpio import CharacterDevice, Directory, Entry, File, Symlink
from lab.image.errors import ImageError
from lab.image.packages import Lock, cache_directory, read_lock, unpack_group, unpack_wheels

APPLICATION_ROOT: Final = "opt/wgvsock"
"""The location of `wgvsock` and `lab` in the guest."""

APPLICATION_RAMDISK: Final = "application.cpio"

PYTHON: Final = "/usr/bin/python3"

INIT: Final = Path(__file__).parents[1] / "guest/init.sh"
"""The first process of a guest, which becomes `lab.guest.agent`."""

COMMAND_LINE: Final = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t"
"""Every end of the kernel ends the machine at once: a panic by restart, a restart by triple fault."""

BOOT_MODULES: Final = ("vmw_vsock_virtio_transport", "tun")
"""Loaded by init. Everything else is loaded when the kernel or a command needs it (modprobe by alias)."""

_MODULES: Final = (
    *BOOT_MODULES,
    *(
        "vsock_loopback",
        "vhost_vsock",
        "vsock_diag",
        "vsockmon",
        "cuse",
        "veth",
        "dummy",
        "virtio_net",
        "wireguard",
        "nsm",
        "ptp_kvm",
    ),
    *("nf_tables", "nft_*", "nf_nat*", "nf_conntrack_netlink", "nfnetlink_log", "ip_tables", "ip6_tables", "iptable_*"),
    *("ip6table_*", "ipt_*", "ip6t_*", "xt_*", "nf_log_syslog", "sch_fq*", "sch_netem*", "bridge"),
)
_SKIPPED: Final = (
    *("usr/share", "usr/lib/python3.11/test", "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/idlelib"),
    *("usr/lib/python3.11/lib2to3", "usr/lib/python3.11/ensurepip", "usr/lib/python3.11/distutils", "usr/lib/systemd"),
    *("usr/lib/python3.11/turtle.py", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/tc"),
    *("usr/lib/x86_64-linux-gnu/tc", "usr/lib/python3.11/sitecustomize.py", "etc/python3.11", "usr/lib/bfd-plugins"),
)
_LOADER: Final = "ld-linux-x86-64.so.2"
_DEVICES: Final[dict[str, Entry]] = {
    "dev/console": CharacterDevice(5, 1),
    "dev/null": CharacterDevice(1, 3, 0o666),
}
_COMMANDS: Final = {
    **dict.fromkeys(("iptables", "iptables-save", "iptables-restore"), "xtables-nft-multi"),
    **dict.fromkeys(("ip6tables", "ip6tables-save", "ip6tables-restore"), "xtables-nft-multi"),
}


@dataclass(frozen=True, slots=True)
class Image:
    """What a guest boots. All of it is measured if the guest is an enclave.

    Attributes:
        kernel: Path of the uncompressed kernel.
        ramdisks: Paths in the order in which the kernel unpacks them: base, application.
        command_line: The kernel's.
    """

    kernel: Path
    ramdisks: tuple[Path, ...]
    command_line: str = COMMAND_LINE


@dataclass(frozen=True, slots=True)
class Base:
    """The cached part: kernel and userland."""

    kernel: Path
    ramdisk: Path
    release: str


def build(application: Mapping[str, Entry] | None = None, *, target: Path, cache: Path | None = None) -> Image:
    """Return a complete image: the cached base and the checkout's wgvsock, with further files of the caller.

    Args:
        application: Files in addition to wgvsock and lab, such as ``etc/wgvsock/enclave.toml``.
        target: Folder for the application ramdisk.
        cache: Folder for everything that depends only on pins.

    Raises:
        PackageError: A pinned package is not available.
        ImageError: The packages lack something that the image needs.
    """
    base = build_base(cache or cache_directory())
    ramdisk = target / APPLICATION_RAMDISK
    ramdisk.write_bytes(cpio.pack({**application_tree(), **(application or {})}))
    return Image(base.kernel, (base.ramdisk, ramdisk))


def build_base(cache: Path, lock: Lock | None = None) -> Base:
    """Return kernel and userland from the pinned packages, built once per set of pins and version of this builder."""
    lock = lock or read_lock()
    recipe = [Path(module.__file__ or "").read_bytes() for module in (cpio, modules, vmlinux)]
    recipe += [Path(__file__).read_bytes(), INIT.read_bytes()]
    wheels = unpack_wheels(cache)
    digest = hashlib.sha256(
        b"".join(recipe) + lock.digest("guest", "kernel").encode() + wheels.name.encode()
    ).hexdigest()[:16]
    kernel_root = unpack_group("kernel", lock, cache)
    (module_folder,) = (kernel_root / "lib/modules").iterdir()
    release = module_folder.name
    base = Base(cache / f"vmlinux-{lock.digest('kernel')}", cache / f"base-{digest}.cpio", release)
    if not base.kernel.exists():
        host = unpack_group("host", lock, cache)
        bzimage = (kernel_root / "boot" / f"vmlinuz-{release}").read_bytes()
        _write_whole(base.kernel, vmlinux.extract(bzimage, zstd=lambda data: _unzstd(host, data)))
    if not base.ramdisk.exists():
        guest = unpack_group("guest", lock, cache)
        tree = userland_tree(guest, wheels)
        tree |= modules.entries(modules.collect(module_folder, _MODULES), release)
        tree["etc/modules"] = File("".join(f"{name}\n" for name in BOOT_MODULES).encode())
        _write_whole(base.ramdisk, cpio.pack(tree))
    return base


def userland_tree(guest: Path, wheels: Path) -> dict[str, Entry]:
    """Return Debian's files without documentation, compiled Python, busybox under its names, and init."""
    tree: dict[str, Entry] = dict(_DEVICES)
    for name in ("bin", "sbin", "lib", "lib64"):
        tree[name] = Symlink(f"usr/{name}")
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "etc", "mnt", "var/log", "opt"):
        tree[name] = Directory(0o1777 if name == "tmp" else 0o755)
    tree["var/run"] = Symlink("../run")
    tree |= _busybox(guest)
    tree |= {path: entry for path, entry in _files(guest) if not path.startswith(_SKIPPED)}
    tree |= {f"usr/sbin/{name}": Symlink(target) for name, target in _COMMANDS.items()}
    tree["usr/bin/python3"] = Symlink("python3.11")
    tree["usr/sbin/modprobe"] = Symlink("../bin/busybox")  # where the kernel looks for it (/proc/sys/kernel/modprobe)
    tree |= {f"usr/lib/python3/dist-packages/{path}": entry for path, entry in _files(wheels)}
    tree["usr/lib/python3/dist-packages/wgvsock.pth"] = File(f"/{APPLICATION_ROOT}\n".encode())
    tree["etc/passwd"] = File(b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    tree["etc/group"] = File(b"root:x:0:\nnogroup:x:65534:\n")
    tree["etc/hosts"] = File(b"127.0.0.1 localhost\n::1 localhost\n")
    tree["etc/nsswitch.conf"] = File(b"hosts: files dns\n")
    tree["init"] = File(INIT.read_bytes(), 0o755)
    return compiled(tree, guest, keep_source=False)


def application_tree() -> dict[str, Entry]:
    """Return the packages wgvsock and lab as in this checkout, and the command ``wgvsock``."""
    tree: dict[str, Entry] = {}
    for package in (wgvsock, lab):
        folder = Path(package.__file__ or "").parent
        for path in sorted(folder.rglob("*.py")):
            tree[f"{APPLICATION_ROOT}/{folder.name}/{path.relative_to(folder)}"] = File(path.read_bytes())
    script = f"#!{PYTHON}\nfrom wgvsock.cli import main\n\nraise SystemExit(main())\n"
    tree["usr/bin/wgvsock"] = File(script.encode(), 0o755)
    guest = unpack_group("guest", read_lock(), cache_directory())
    return compiled(tree, guest, keep_source=True)


def compiled(tree: Mapping[str, Entry], guest: Path, *, keep_source: bool) -> dict[str, Entry]:
    """Return the tree with Python's byte code, compiled by the guest's own interpreter with its own C library.

    Unchecked byte code (PEP 552) needs no timestamps: the result is reproducible, and a start costs no ``stat``.
    Without sources the byte code replaces them.
    """
    sources = {path: entry for path, entry in tree.items() if path.endswith(".py") and isinstance(entry, File)}
    with tempfile.TemporaryDirectory(prefix="wgvsock-compile-") as name:
        folder = Path(name)
        for path, entry in sources.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.data)
        legacy = () if keep_source else ("-b",)
        options = ["-m", "compileall", "-q", *legacy, "--invalidation-mode=unchecked-hash", "-s", name, "-p", "/", name]
        environment = {"PYTHONHOME": str(guest / "usr"), "PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")}
        command = [*private_loader(guest), str(guest / "usr/bin/python3.11"), "-S", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ImageError("cannot compile the guest's Python files", why=(done.stdout + done.stderr).strip()[-400:])
        byte_code: dict[str, Entry] = {
            str(path.relative_to(folder)): File(path.read_bytes()) for path in sorted(folder.rglob("*.pyc"))
        }
    kept = dict(tree) if keep_source else {path: entry for path, entry in tree.items() if path not in sources}
    return {**kept, **byte_code}


def private_loader(root: Path) -> list[str]:
    """Return the prefix of a command that runs a program of an unpacked tree only with that tree's C library."""
    folders = [root / folder for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib")]
    loader = next((folder for folder in folders if (folder / _LOADER).exists()), folders[0]) / _LOADER
    return [str(loader), "--library-path", ":".join(map(str, folders))]


def _busybox(guest: Path) -> dict[str, Entry]:
    names = subprocess.run(
        [str(guest / "bin/busybox"), "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    return {f"usr/bin/{name}": Symlink("busybox") for name in names if name not in {"busybox", "ip", "sh"}}


def _files(root: Path) -> Iterator[tuple[str, Entry]]:
    """Yield every file and link below a folder, on a merged /usr."""
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/", 1)[0] in {"bin", "sbin", "lib", "lib64"}:
            name = f"usr/{name}"
        if path.is_symlink():
            yield name, Symlink(str(path.readlink()))
        elif path.is_file():
            yield name, File(path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)


def _unzstd(host: Path, data: bytes) -> bytes:
    command = [*private_loader(host), str(host / "usr/bin/zstd"), "-dcq"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise ImageError("cannot unpack the kernel", why=done.stderr.decode(errors="replace").strip())
    return done.stdout


def _write_whole(path: Path, data: bytes) -> None:
    """Replace a file so that a reader never sees half of it, and two writers never share one."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(path)
