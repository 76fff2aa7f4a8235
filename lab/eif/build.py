"""An enclave image file from the laboratory's guest files."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from lab.eif.format import EnclaveImage
from lab.qemu.image import Image


def from_image(image: Image, *, name: str = "wgvsock-lab", version: str = "1.0") -> EnclaveImage:
    """The same kernel, command line and ramdisks as an enclave image, with the metadata that nitro-cli writes.

    The build time is left out: the same sources give the same file.
    """
    metadata: Mapping[str, Any] = {
        "ImageName": name,
        "ImageVersion": version,
        "BuildMetadata": {
            "BuildTime": "1970-01-01T00:00:00+00:00",
            "BuildTool": "wgvsock-lab",
            "BuildToolVersion": "1.0",
            "OperatingSystem": platform.system(),
            "KernelVersion": image.kernel.name,
        },
        "DockerInfo": {},
        "CustomMetadata": None,
    }
    ramdisks = tuple(ramdisk.read_bytes() for ramdisk in image.ramdisks)
    return EnclaveImage(image.kernel.read_bytes(), image.command_line, ramdisks, metadata)
