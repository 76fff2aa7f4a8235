"""Errors that stop an enclave's agent, in addition to those that its parts raise."""

from __future__ import annotations

from wgvsock.errors import ConfigurationError, SystemSetupError


class KeyCommitmentError(SystemSetupError):
    """The PCR that should commit to the WireGuard key is in use."""

    code = "WGV-E085"


class ApplicationError(ConfigurationError):
    """The application cannot be started."""

    code = "WGV-E086"


class DocumentError(SystemSetupError):
    """A request for an attestation document was refused or failed.

    Args:
        why: The reason.
        status: HTTP status of the answer.
    """

    code = "WGV-E059"

    def __init__(self, why: str, *, status: int) -> None:
        super().__init__("no attestation document", why=why, fix="try again, and read the agent's log for the reason")
        self.status = status
