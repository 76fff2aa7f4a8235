"""What can be wrong with a kernel device."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class TunMissingError(SystemSetupError):
    """/dev/net/tun is not there and cannot be made."""

    code = "WGV-E070"


class TunForbiddenError(SystemSetupError):
    """The kernel does not let us make or use the interface."""

    code = "WGV-E071"


class TunGoneError(SystemSetupError):
    """The interface was removed while we used it."""

    code = "WGV-E072"
