"""Pinned Debian packages and wheels, downloaded once into the user's cache by version and SHA-256.

Nothing is installed: packages are unpacked privately, and QEMU runs with the C library it was built for, so neither the
machine's Debian release nor its apt sources matter. A suite's Release file may have expired by the time somebody runs
the laboratory. Trust therefore comes from the checksums in ``packages.json`` (`lab.image.lock` writes it), not from a
Release file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.errors import Unavailable
from lab.image.errors import PackageError

LOCK_FILE: Final = Path(__file__).with_name("packages.json")
WHEELS_FILE: Final = Path(__file__).parents[2] / "deploy/image/wheels.txt"
_APT_HELPER: Final = "/usr/lib/apt/apt-helper"

Download = Callable[[Sequence[tuple[str, Path, str]]], None]
"""Fetches (URL, destination, SHA-256 in hex) triples."""


def unavailable() -> Unavailable | None:
    """Return why this machine cannot run the pinned QEMU, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Unavailable("missing", "an x86-64 Linux", "run the QEMU lab on one; LAB=netns runs on any Linux")
    for tool in (_APT_HELPER, "dpkg-deb"):
        if shutil.which(tool) is None:
            return Unavailable("missing", tool, "run the QEMU lab on Debian or Ubuntu")
    return None


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version. `path` is relative to the archive's root, `sha256` is in hex, `size` in bytes."""

    name: str
    version: str
    path: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        """The name in the cache. It contains the checksum, so that a new pin never gets an old file."""
        return f"{self.name}_{self.sha256[:16]}.deb"


@dataclass(frozen=True, slots=True)
class Lock:
    """The pins of one laboratory release, by group: ``host`` runs here, ``guest`` and ``kernel`` go into images."""

    archives: tuple[str, ...]
    groups: dict[str, tuple[Pin, ...]]

    def digest(self, *groups: str) -> str:
        """A short name for exactly these packages: 16 hex digits."""
        text = "".join(pin.sha256 for group in groups for pin in self.groups[group])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_lock(path: Path = LOCK_FILE) -> Lock:
    """Return the pins as committed."""
    data = json.loads(path.read_text())
    groups = {name: tuple(Pin(**pin) for pin in pins) for name, pins in data["groups"].items()}
    return Lock(tuple(data["archives"]), groups)


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/wgvsock``, created if missing (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - also without a HOME
    path = Path(base) / "wgvsock"
    path.mkdir(parents=True, exist_ok=True)
    return path


def fetch(pins: Iterable[Pin], lock: Lock, cache: Path, download: Download | None = None) -> list[Path]:
    """Return the packages' files, after downloading those that the cache lacks.

    Raises:
        PackageError: No archive has the file any longer, or the download differs from the pin.
    """
    download = download or apt_download
    directory = cache / "debs"
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {directory / pin.file_name: pin for pin in pins}
    missing = {path: pin for path, pin in wanted.items() if not _is(path, pin.sha256)}
    for number, archive in enumerate(lock.archives, 1):
        if not missing:
            break
        try:
            download([(f"{archive}/{pin.path}", path, pin.sha256) for path, pin in missing.items()])
        except PackageError:
            if number == len(lock.archives):
                raise
        missing = {path: pin for path, pin in missing.items() if not _is(path, pin.sha256)}
    if missing:
        names = ", ".join(pin.name for pin in missing.values())
        raise PackageError(
            f"cannot fetch {names}",
            why="the download does not have the pinned SHA-256",
            fix="try again; if it persists, renew the pins with python -m lab.image.lock",
        )
    return list(wanted)


def apt_download(items: Sequence[tuple[str, Path, str]]) -> None:
    """Download with apt's own downloader, which follows the machine's proxy settings and checks the hashes.

    Raises:
        PackageError: An archive lacks a file, or sent another.
    """
    triples = [word for url, path, digest in items for word in (url, str(path), f"SHA256:{digest}")]
    command = [_APT_HELPER, "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download-file", *triples]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise PackageError(
            f"cannot fetch {len(items)} Debian packages",
            why="; ".join(lines[:3]) or f"apt-helper ended with {done.returncode}",
            fix="check the network; a package that left the archive needs new pins: python -m lab.image.lock",
        )


def unpack(files: Iterable[Path], target: Path) -> Path:
    """Unpack packages on top of each other into `target`, once: a finished folder is used as it is.

    Raises:
        PackageError: dpkg-deb refused a file.
    """
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for file in files:
            subprocess.run(["dpkg-deb", "-x", str(file), str(partial)], check=True, capture_output=True)
        partial.rename(target)
    except (OSError, subprocess.CalledProcessError) as error:
        if target.is_dir():  # another process was faster
            return target
        raise PackageError(f"cannot unpack into {target}", why=str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def unpack_group(group: str, lock: Lock, cache: Path) -> Path:
    """Download and unpack one group of the lock file, and return its root folder."""
    target = cache / f"{group}-{lock.digest(group)}"
    if target.is_dir():
        return target
    return unpack(fetch(lock.groups[group], lock, cache), target)


def unpack_wheels(cache: Path, requirements: Path = WHEELS_FILE) -> Path:
    """Return the guest's Python packages as one folder, from wheels pinned by hash, for CPython 3.11 on x86-64 Linux.

    Raises:
        PackageError: pip could not download them.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    target = cache / f"wheels-{digest}"
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"),
        *("--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3"),
        *("--abi=none", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_17_x86_64"),
        *("--platform=manylinux2014_x86_64", "--platform=manylinux_2_34_x86_64", "--platform=any"),
        *("--target", str(partial), "-r", str(requirements)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        raise PackageError("cannot fetch the guest's wheels", why=done.stderr.strip()[-400:])
    shutil.rmtree(partial / "bin", ignore_errors=True)
    try:
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _is(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
