"""Errors of a service's own state, each with its own code."""

from __future__ import annotations

from wgvsock.errors import SystemSetupError


class JournalError(SystemSetupError):
    """The record of our changes to this machine cannot be kept."""

    code = "WGV-E054"


class AlreadyRunningError(SystemSetupError):
    """Another process with the same name holds the lock."""

    code = "WGV-E055"
    exit_code = 1
