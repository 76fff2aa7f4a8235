"""Errors of the user-space uplink."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class EngineMissingError(SystemSetupError):
    """libslirp is not installed, or its version is not supported."""

    code = "WGV-E104"


class EngineStartError(SystemSetupError):
    """The engine's process does not start."""

    code = "WGV-E105"


class PortError(SystemSetupError):
    """A published port cannot be bound."""

    code = "WGV-E106"
