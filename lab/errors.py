"""The laboratory's branch of the exception tree (`wgvsock.errors`): codes WGV-E090 to WGV-E099."""

from __future__ import annotations

from wgvsock.errors import WgvsockError


class LabError(WgvsockError):
    """A step of the laboratory failed."""

    code = "WGV-E090"


class LabUnavailableError(LabError):
    """This machine cannot run the backend that was asked for."""

    code = "WGV-E091"
    exit_code = 7


class LabTimeoutError(LabError):
    """Something that had to happen did not happen within its deadline."""

    code = "WGV-E092"
    exit_code = 6
