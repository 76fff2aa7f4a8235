"""What the provisioning machines tell the shell around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.errors import AttestationError
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.errors import ExchangeError

if TYPE_CHECKING:
    from wgvsock.provisioning.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one request assigned to the enclave.

    Attributes:
        relay_public_key: The relay's WireGuard key, 32 bytes.
        preshared_key: The WireGuard preshared key of this exchange, 32 secret bytes.
        config: The validated network settings.
        signer: The Ed25519 key that signed the request; None when it was not signed.
    """

    relay_public_key: bytes
    preshared_key: bytes = field(repr=False)
    config: TunnelConfig
    signer: bytes | None = None


# Enclave.


@dataclass(frozen=True, slots=True)
class ConfigurationOffered:
    """Apply `assignment`, then call ``exchange.configuration_applied`` or ``configuration_failed``.

    `replaces` is the assignment in force, which has to go on working until `ConfigurationActivated` (make before
    break); None when there is none.
    """

    exchange: Exchange
    assignment: Assignment
    replaces: Assignment | None


@dataclass(frozen=True, slots=True)
class AttestationNeeded:
    """Ask the Nitro Security Module for a document with exactly these fields, then call ``exchange.attestation_…``."""

    exchange: Exchange
    nonce: bytes = field(repr=False)
    public_key: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class ConfigurationRolledBack:
    """Take `assignment` back, as far as it was applied; `restores` is what has to be in force afterwards, if any."""

    assignment: Assignment
    restores: Assignment | None


@dataclass(frozen=True, slots=True)
class ConfigurationActivated:
    """The relay has proved itself under `assignment`; `replaced` may be removed now."""

    assignment: Assignment
    replaced: Assignment | None


@dataclass(frozen=True, slots=True)
class ExchangeEnded:
    """The exchange is over: `error` says why it failed, None that the relay accepted the enclave. For the log."""

    exchange: Exchange
    error: ExchangeError | None


EnclaveEvent: TypeAlias = (
    ConfigurationOffered | AttestationNeeded | ConfigurationRolledBack | ConfigurationActivated | ExchangeEnded
)


# Relay.


@dataclass(frozen=True, slots=True)
class EnclaveProvisioned:
    """Every check passed: install exactly this key and preshared key, and start a handshake.

    Attributes:
        attested: The verifier's word on the enclave, with its WireGuard key.
        preshared_key: The WireGuard preshared key of this exchange, 32 secret bytes.
        config: What the enclave has set up.
        capabilities: The chosen framing and profile.
    """

    attested: AttestedEnclave
    preshared_key: bytes = field(repr=False)
    config: TunnelConfig
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProvisioningFailed:
    """The exchange failed: flush what is queued, close, and raise or log `error`."""

    error: ExchangeError | AttestationError


RelayEvent: TypeAlias = EnclaveProvisioned | ProvisioningFailed
