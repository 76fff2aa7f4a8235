"""Errors of the control socket. See `wgvsock.errors` for the tree."""

from __future__ import annotations

from wgvsock.errors import RemoteProtocolError, SystemSetupError


class UapiError(RemoteProtocolError):
    """A request on the control socket cannot be carried out. The client reads ``errno=-errno``.

    Args:
        errno: Positive error number from errno(3).
        what: What was wrong. It must not quote the request, which may contain a key.
    """

    def __init__(self, errno: int, what: str) -> None:
        super().__init__(what)
        self.errno = errno


class ControlSocketError(SystemSetupError):
    """The control socket cannot be opened."""

    code = "WGV-E068"
