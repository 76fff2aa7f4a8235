"""Builds an enclave image file from the laboratory's guest files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.guest.agent import SERVICES_FILE
from lab.image.build import PYTHON, Image
from lab.image.cpio import Entry, File
from lab.image.eif import EnclaveImage


def from_image(image: Image, *, name: str = "wgvsock-lab", version: str = "1.0") -> EnclaveImage:
    """Return the same kernel, command line and ramdisks as an enclave image, with the metadata that nitro-cli writes.

    The build time is left out, so that the same sources give the same file.
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


def overlay(folder: Path) -> dict[str, Entry]:
    """Return the files below a folder, as additions to an image's application."""
    return {
        str(path.relative_to(folder)): File(path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def boot_services(command: Sequence[str]) -> dict[str, Entry]:
    """Return the services that make a guest an enclave: /dev/nsm, then the command, with which the enclave ends."""
    services = [
        {"argv": [PYTHON, "-m", "lab.guest.cuse.nsm"], "device": "/dev/nsm"},
        {"argv": list(command), "main": True},
    ]
    return {SERVICES_FILE.lstrip("/"): File(json.dumps(services).encode())}
