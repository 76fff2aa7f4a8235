"""An enclave that the Relay launches itself, and its possible images, which a schedule replaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from lab import config as configurations
from lab.image.eif import measure
from lab.laboratory import LAB, serving
from lab.nitro.enclaves import Limits
from lab.nitro.local import LocalParent, environment, write_image
from lab.topology import Node, Service

NAME: Final = "launched"
IMAGES: Final = ("one", "two")
SERVICE: Final = Service(Node.ENCLAVE, echo_port=7009, http_port=8082)
"""Ports of its application, which are published under the same numbers."""

_MEMORY: Final = 512
_DRAIN: Final = 1
"""Seconds: the connections that a schedule keeps open never end on their own."""


class Launched:
    """A parent instance whose enclaves are processes (`lab.nitro.local`), and the Relay's configuration of one.

    Args:
        folder: Its own folder, with a short path, because it holds sockets.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parent = LocalParent(folder / "s", Limits(memory_mib=4 * _MEMORY, cpu_count=4))
        self._root = self._parent.start_signer()
        self._pcrs = {name: self._make_image(name) for name in IMAGES}

    @classmethod
    @contextlib.contextmanager
    def raised(cls) -> Iterator[Self]:
        """Provide one in a temporary folder, whose nitro-cli this process's children call."""
        folder = Path(tempfile.mkdtemp(prefix="wgv-s-"))
        before = dict(os.environ)
        os.environ.update(environment(folder / "s"))
        try:
            one = cls(folder)
            try:
                yield one
            finally:
                one._parent.close()
        finally:
            os.environ.clear()
            os.environ.update(before)
            shutil.rmtree(folder)

    @property
    def vsock(self) -> Path:
        """The folder that the Relay dials in place of AF_VSOCK (`lab.programs.local_vsock`)."""
        return self._parent.vsock

    def image(self, name: str) -> str:
        """Return the path of an image."""
        return str(self._folder / f"{name}.eif")

    def measurement(self, path: str) -> str:
        """Return PCR2 of an image, which its application determines."""
        return self._pcrs[Path(path).stem]["PCR2"]

    def config(self) -> dict[str, Any]:
        """Return its ``[[enclaves]]`` table, with the first image, a link of the pool, and any CID of nitro-cli's."""
        accepted = [configurations.accepts(self._root, pcrs)["pcr_sets"][0] for pcrs in self._pcrs.values()]
        return {
            "name": NAME,
            "launch": {
                "image": self.image(IMAGES[0]),
                "memory_mib": _MEMORY,
                "cpu_count": 1,
                "nitro_cli": str(LAB / "bin/nitro-cli"),
                "drain_timeout": _DRAIN,
                "ready_timeout": 20,
            },
            "attestation": {"root_sha256": [self._root], "pcr_sets": accepted},
            "publish": configurations.publishes(SERVICE),
        }

    def _make_image(self, name: str) -> dict[str, str]:
        image = write_image(Path(self.image(name)), serving(SERVICE, name), name=name)
        return {f"PCR{number}": value.hex() for number, value in measure(image).items()}
