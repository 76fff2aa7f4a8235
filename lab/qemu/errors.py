"""Errors of the laboratory's virtual machines, one class per kind."""

from __future__ import annotations

from lab.errors import LabError


class GuestError(LabError):
    """A guest did not start, did not answer, or ended unexpectedly."""

    code = "WGV-E095"


class GuestOopsError(GuestError):
    """The guest's kernel reported an internal error: a fault of the emulator or the kernel, not of tested code."""

    code = "WGV-E096"
