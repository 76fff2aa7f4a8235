"""Errors of kernel devices."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class TunMissingError(SystemSetupError):
    """/dev/net/tun does not exist and cannot be created."""

    code = "WGV-E070"


class TunForbiddenError(SystemSetupError):
    """The kernel does not let us create or use the interface."""

    code = "WGV-E071"


class TunGoneError(SystemSetupError):
    """The interface was removed while in use."""

    code = "WGV-E072"
