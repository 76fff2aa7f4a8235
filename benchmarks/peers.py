"""Finds the newest wireguard-go and gvproxy that run here: Debian unstable's packages, unpacked, or the installed ones.

apt itself fetches the package, with separate lists and cache below the cache folder, so that signatures are checked and
the machine's own package state is not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wgvsock-benchmarks"

_MIRROR: Final = "http://deb.debian.org/debian"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TIMEOUT: Final = 120.0
"""Seconds for apt to fetch 10 MB of lists and one package."""


def wireguard_go() -> Path | None:
    """Return the path of a wireguard-go that runs, or None."""
    return _newest("wireguard-go")


def gvproxy() -> Path | None:
    """Return the path of a gvproxy that runs, or None. Bookworm has no such package."""
    return _newest("gvproxy")


def _newest(name: str) -> Path | None:
    unpacked = CACHE / name / "usr" / "bin" / name
    if not unpacked.exists():
        _fetch(name, CACHE / name)
    installed = shutil.which(name)
    candidates = [unpacked, *([Path(installed)] if installed else [])]
    return next((program for program in candidates if _runs(program)), None)


def version(program: Path) -> str:
    """Return the program's own version text, and its package if that is known."""
    said = subprocess.run((program, "--version"), capture_output=True, text=True, check=False).stdout.split("\n", 1)[0]
    packages = [path.name.split("_")[1] for path in CACHE.glob(f"{program.name}_*.deb")]
    return f"{said} (Debian {packages[-1]})" if packages and CACHE in program.parents else said


def _fetch(package: str, target: Path) -> None:
    """Download and unpack a package of Debian unstable. If that fails, the installed one is used."""
    lists = CACHE / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    sources = CACHE / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_MIRROR} sid main\n")
    apt = (
        "apt-get",
        "-qq",
        "-o", f"Dir::Etc::sourcelist={sources}",
        "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={lists}",
        "-o", "Dir::Cache::pkgcache=",
        "-o", "Dir::Cache::srcpkgcache=",
        "-o", "Acquire::Languages=none",
        "-o", "APT::Sandbox::User=root",
    )  # fmt: skip
    try:
        for command in ((*apt, "update"), (*apt, "download", package)):
            subprocess.run(command, cwd=CACHE, capture_output=True, check=True, timeout=_TIMEOUT)
        archive = next(CACHE.glob(f"{package}_*.deb"))
        subprocess.run(("dpkg-deb", "-x", archive, target), capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError, StopIteration):
        shutil.rmtree(target, ignore_errors=True)


def _runs(program: Path) -> bool:
    try:
        return not subprocess.run((program, "--version"), capture_output=True, check=False, timeout=10).returncode
    except (OSError, subprocess.SubprocessError):
        return False
