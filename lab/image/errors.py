"""Errors of the files that guests boot."""

from __future__ import annotations

from lab.errors import LabError


class PackageError(LabError):
    """A pinned package could not be fetched, or differs from the pin."""

    code = "WGV-E093"


class ImageError(LabError):
    """The guest's kernel or file system could not be built."""

    code = "WGV-E094"
