"""The images of this checkout as OCI archives, built once per content of their sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.errors import LabError
from lab.image.packages import cache_directory

CHECKOUT: Final = Path(__file__).parents[2]
_INGREDIENTS: Final = (
    "wgvsock",
    "deploy/image",
    "pyproject.toml",
    "setup.py",
    "tools/build",
    "tools/build-constraints.txt",
    "share",
    "docs/errors.md",  # these three: `wgvsock explain` reads them
    "docs/operations.md",
    "docs/protocol/attestation.md",
)
_KEPT: Final = 3
"""Builds in the cache: an archive has 30 MB, and developers return to a branch or two."""


def ingredients() -> Iterator[Path]:
    """Yield every file that an image is made of, in a fixed order."""
    for name in _INGREDIENTS:
        path = CHECKOUT / name
        yield from sorted(file for file in path.rglob("*") if _counts(file)) if path.is_dir() else (path,)


def _counts(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def fingerprint() -> str:
    """Return a digest that identifies the content of the checkout."""
    digest = hashlib.sha256()
    for path in ingredients():
        digest.update(f"{path.relative_to(CHECKOUT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def archive(role: str, cache: Path | None = None) -> Path:
    """Return the OCI archive of an image, built if the cache has none of this content.

    Args:
        role: ``relay`` or ``enclave``.
        cache: Folder for builds.

    Raises:
        LabError: The build failed.
    """
    folder = (cache or cache_directory()) / "images" / fingerprint()
    target = folder / f"wgvsock-{role}.oci.tar"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several laboratories may need it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            build(folder, role)
            forget_old_builds(folder.parent)
    os.utime(folder)
    return target


def build(folder: Path, *roles: str) -> str:
    """Run ``deploy/image/build`` with a temporary storage, and return its output.

    Raises:
        LabError: It failed.
    """
    with tempfile.TemporaryDirectory(prefix="wgvsock-images-") as storage:
        done = subprocess.run(
            [CHECKOUT / "deploy/image/build", sys.executable, folder, *roles],
            env={**os.environ, "ENGINE_ROOT": storage},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise LabError("the image cannot be built", why=(done.stdout + done.stderr).strip()[-1000:])
    return done.stdout


def forget_old_builds(folder: Path) -> None:
    """Remove all but the newest."""
    builds = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
