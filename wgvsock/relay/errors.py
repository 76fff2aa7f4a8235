"""What stops a relay, beside what its parts raise."""

from __future__ import annotations

from wgvsock.errors import ConfigurationError, ProvisioningError, SystemSetupError


class HandshakeTimeoutError(ProvisioningError):
    """The enclave was attested, but its WireGuard end does not answer."""

    code = "WGV-E080"
    exit_code = 6


class SigningKeyError(ConfigurationError):
    """The relay's Ed25519 seed cannot be read or kept."""

    code = "WGV-E081"


class UplinkError(SystemSetupError):
    """There is no interface that leads to the world."""

    code = "WGV-E082"


class ReloadError(ConfigurationError):
    """The new configuration changes what cannot be changed in a running relay."""

    code = "WGV-E083"
