"""What stops an enclave's agent, beside what its parts raise."""

from __future__ import annotations

from wgvsock.errors import ConfigurationError, SystemSetupError


class KeyCommitmentError(SystemSetupError):
    """The PCR that has to commit to the WireGuard key is not free."""

    code = "WGV-E085"


class ApplicationError(ConfigurationError):
    """The application cannot be started."""

    code = "WGV-E086"
