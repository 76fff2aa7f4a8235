"""Additions to pyproject.toml for the build: the commit inside the package, and reproducible archives.

``tools/build`` runs it. `SOURCE_DATE_EPOCH` (https://reproducible-builds.org/specs/source-date-epoch/) is the time of
everything in an archive. Without it the build is an ordinary one.

With ``WGVSOCK_COMPILE=1`` mypyc compiles the modules of the hot path, for this Python and this machine
(docs/adr/0025-compiled-build.md). Their sources are included, and an interpreter that cannot load the compiled modules
runs the sources.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
STAMP = "build.json"
"""Read by `wgvsock.release`. A checkout has none. An sdist has the stamp of its checkout."""

COMPILED = (
    "wgvsock/devices/tun.py",
    "wgvsock/framing.py",
    "wgvsock/transports/link.py",
    "wgvsock/tunnel/acknowledgement.py",
    "wgvsock/tunnel/coalescer.py",
    "wgvsock/tunnel/inbound.py",
    "wgvsock/tunnel/outbound.py",
    "wgvsock/tunnel/tunnel.py",
    "wgvsock/virtio_net.py",
    "wgvsock/wireguard/allowedips.py",
    "wgvsock/wireguard/device.py",
    "wgvsock/wireguard/keypair.py",
    "wgvsock/wireguard/peer.py",
    "wgvsock/wireguard/receive.py",
    "wgvsock/wireguard/replay.py",
    "wgvsock/wireguard/send.py",
    "wgvsock/wireguard/timers.py",
)
"""The hot path. The modules are compiled together, so that they call each other without Python's calling convention."""


def compiler_requirements() -> list[str]:
    """Return what a compiled build needs: the compiler, and the typed libraries that it reads."""
    if os.environ.get("WGVSOCK_COMPILE") != "1":
        return []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (compiler,) = (line for line in project["optional-dependencies"]["test"] if line.startswith("mypy"))
    return [compiler, *project["dependencies"]]


def extensions() -> list[Extension]:
    """Return the compiled modules if they are requested and a wheel is built. The metadata do not depend on them."""
    if os.environ.get("WGVSOCK_COMPILE") != "1" or not {"bdist_wheel", "build_ext"}.intersection(sys.argv):
        return []
    from mypyc.build import mypycify

    made: list[Extension] = mypycify(list(COMPILED), group_name="wgvsock", opt_level="2", debug_level="0")
    return made


def stamp() -> dict[str, str | None]:
    """Return the commit, and the build of it."""
    made = ROOT / "wgvsock" / STAMP
    if made.exists():
        found: dict[str, str | None] = json.loads(made.read_text(encoding="utf-8"))
        return found
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    dated = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(int(epoch))) if epoch else None
    return {
        "commit": os.environ.get("WGVSOCK_COMMIT") or commit(),
        "build": os.environ.get("WGVSOCK_BUILD") or dated,
    }


def commit() -> str | None:
    """Return the checkout's commit, with ``+changes`` if files differ from it, or None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changes else head


def put_stamp(package: Path) -> None:
    """Write the stamp into a package that is being built."""
    (package / STAMP).write_text(json.dumps(stamp(), sort_keys=True) + "\n", encoding="utf-8")


PAGES = ("errors.md", "protocol/attestation.md", "operations.md")
"""What `wgvsock explain` reads (`wgvsock.cli.catalogue`)."""


def put_pages(package: Path) -> None:
    """Copy pages of docs/ into a package that is being built. An sdist already contains them, and has no docs/."""
    for name in PAGES:
        page = next(path for path in (ROOT / "docs" / name, ROOT / "wgvsock/pages" / name) if path.exists())
        target = package / "pages" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(page.read_bytes())


class StampedBuild(build_py):
    """Adds the stamp and the pages, and sets file modes independently of the umask."""

    def run(self) -> None:
        """Build the package's folder."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "wgvsock"
        put_stamp(package)
        put_pages(package)
        for path in (package, *package.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


class StampedSdist(sdist):
    """Adds the stamp, and writes an archive whose bytes depend only on its content."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the folder that becomes the archive."""
        super().make_release_tree(base_dir, files)
        put_stamp(Path(base_dir) / "wgvsock")
        put_pages(Path(base_dir) / "wgvsock")

    def make_archive(self, base_name: str, format: str, *args: object, **options: object) -> str:  # noqa: A002
        """Write the archive: sorted, with a single time and without owners."""
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            made: str = super().make_archive(base_name, format, *args, **options)
            return made
        tree = Path(str(options["base_dir"]))

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = int(epoch), 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        target = Path(f"{base_name}.tar.gz")
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            target.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted((tree, *tree.rglob("*"))):
                archive.add(path, recursive=False, filter=plain)
        return str(target)


setup(
    cmdclass={"build_py": StampedBuild, "sdist": StampedSdist},
    ext_modules=extensions(),
    setup_requires=compiler_requirements(),
)
