"""Events of the provisioning state machines, for the shell around them, which does the I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from wgvsock.errors import AttestationError
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.errors import ExchangeError

if TYPE_CHECKING:  # the verifier and its X.509 are the relay's: an enclave loads neither
    from wgvsock.attestation.verifier import AttestedEnclave
    from wgvsock.provisioning.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Assignment:
    """The settings and keys that one request assigns to the enclave.

    Attributes:
        relay_public_key: The relay's WireGuard key, 32 bytes.
        preshared_key: The WireGuard preshared key of this exchange, 32 secret bytes.
        config: The validated network settings.
        signer: The Ed25519 public key (32 bytes) that signed the request, or None if it was not signed.
        epoch_ms: The request's epoch, milliseconds of Unix time.
        incarnation: When the relay's process started, milliseconds of Unix time.
    """

    relay_public_key: bytes
    preshared_key: bytes = field(repr=False)
    config: TunnelConfig
    signer: bytes | None = None
    epoch_ms: int = 0
    incarnation: int = 0

    def is_of(self, other: Assignment) -> bool:
        """Whether both come from the same process of the same relay."""
        return self.signer == other.signer and self.incarnation == other.incarnation


# Enclave.


@dataclass(frozen=True, slots=True)
class ConfigurationOffered:
    """Apply `assignment`, then call ``exchange.configuration_applied`` or ``configuration_failed``.

    `replaces` is the assignment in force, or None. It has to keep working until `ConfigurationActivated` (make before
    break).
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
    """Undo `assignment` as far as it was applied. Afterwards `restores` has to be in force, if it is not None."""

    assignment: Assignment
    restores: Assignment | None


@dataclass(frozen=True, slots=True)
class ConfigurationActivated:
    """The relay has proved itself under `assignment`. `replaced` may be removed now."""

    assignment: Assignment
    replaced: Assignment | None


@dataclass(frozen=True, slots=True)
class ExchangeEnded:
    """An exchange of the proved relay is over. `error` is None if the relay accepted the enclave. For the log.

    Exchanges of strangers are counted in `StrangersTurnedAway`.
    """

    exchange: Exchange
    error: ExchangeError | None


@dataclass(frozen=True, slots=True)
class StrangersTurnedAway:
    """Exchanges since the last such event that ended before the other side had proved to be the relay. For the log.

    Attributes:
        ends: One error of each kind, and how many there were.
    """

    ends: tuple[tuple[ExchangeError, int], ...]


EnclaveEvent: TypeAlias = (
    ConfigurationOffered
    | AttestationNeeded
    | ConfigurationRolledBack
    | ConfigurationActivated
    | ExchangeEnded
    | StrangersTurnedAway
)


# Relay.


@dataclass(frozen=True, slots=True)
class EnclaveProvisioned:
    """Every check passed: install exactly this key and preshared key, and start a handshake.

    Attributes:
        attested: The enclave as the verifier attested it, with its WireGuard key.
        preshared_key: The WireGuard preshared key of this exchange, 32 secret bytes.
        config: The settings that the enclave has applied.
        capabilities: The chosen framing and profile.
    """

    attested: AttestedEnclave
    preshared_key: bytes = field(repr=False)
    config: TunnelConfig
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProvisioningFailed:
    """The exchange failed: send the queued bytes, close, and raise or log `error`."""

    error: ExchangeError | AttestationError


RelayEvent: TypeAlias = EnclaveProvisioned | ProvisioningFailed
