"""Errors of a relay, in addition to those that its parts raise."""

from __future__ import annotations

from wgvsock.errors import ConfigurationError, ProvisioningError, SystemSetupError, WgvsockError


class HandshakeTimeoutError(ProvisioningError):
    """The enclave was attested, but it does not answer the WireGuard handshake."""

    code = "WGV-E080"
    exit_code = 6


class SigningKeyError(ConfigurationError):
    """The relay's Ed25519 seed cannot be read or saved."""

    code = "WGV-E081"


class UplinkError(SystemSetupError):
    """The relay has no usable uplink."""

    code = "WGV-E082"


class ReloadError(ConfigurationError):
    """The new configuration changes a setting that a running relay cannot change.

    Args:
        key: The setting, with dots.
    """

    code = "WGV-E083"

    def __init__(self, key: str) -> None:
        super().__init__(
            "cannot reload the configuration", why=f'"{key}" has changed', fix="restart the relay to apply it"
        )


class ReplacementError(WgvsockError):
    """An enclave was not replaced. The old one continues to serve."""

    code = "WGV-E084"
    exit_code = 6


class ObstacleError(SystemSetupError):
    """Another program's rules block the enclave's packets on this machine."""

    code = "WGV-E088"


class AuditError(SystemSetupError):
    """The audit line of an attestation document cannot be written."""

    code = "WGV-E100"


class SignalError(WgvsockError):
    """A signal was not sent to an enclave's application."""

    code = "WGV-E089"
    exit_code = 6
