"""What can go wrong with the laboratory's virtual machines, each kind told apart."""

from __future__ import annotations

from lab.errors import LabError


class PackageError(LabError):
    """A pinned package could not be fetched, or is not the one that was pinned."""

    code = "WGV-E093"


class ImageError(LabError):
    """The guest's kernel or file system could not be built."""

    code = "WGV-E094"


class GuestError(LabError):
    """A guest did not start, did not answer, or ended by itself."""

    code = "WGV-E095"


class GuestOopsError(GuestError):
    """The guest's kernel reported an internal error: a fault of the emulator or the kernel, not of what is tested."""

    code = "WGV-E096"
