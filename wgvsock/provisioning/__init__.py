"""Provisioning protocol ``wgvsock/prov/1``: how a relay configures an enclave and comes to trust its WireGuard key.

No I/O, no clock, no entropy. In the order a message meets them: `frames`, `messages`, `config` and `capabilities`,
`pin` (the relay's signature), `transcript` (what binds the attestation to the messages); `initiator` is the relay's
side, `exchange` one connection at the enclave, `responder` the enclave over many connections. The protocol is
specified in docs/protocol/provisioning.md.
"""

from wgvsock.provisioning.capabilities import (
    DEFAULT_CAPABILITIES,
    FRAMING_COMPAT,
    FRAMING_NATIVE,
    PROFILE_GSO,
    PROFILE_PLAIN,
    framing_of,
    profile_of,
)
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.deadlines import LISTEN_BACKLOG, Deadlines
from wgvsock.provisioning.events import (
    Assignment,
    AttestationNeeded,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
    EnclaveProvisioned,
    ExchangeEnded,
    ProvisioningFailed,
    RelayEvent,
)
from wgvsock.provisioning.exchange import Exchange, ExchangeState
from wgvsock.provisioning.initiator import RelayProvisioning, RelayState
from wgvsock.provisioning.pin import public_key_of
from wgvsock.provisioning.responder import EnclaveProvisioning, LinkState

__all__ = [
    "DEFAULT_CAPABILITIES",
    "FRAMING_COMPAT",
    "FRAMING_NATIVE",
    "LISTEN_BACKLOG",
    "PROFILE_GSO",
    "PROFILE_PLAIN",
    "Assignment",
    "AttestationNeeded",
    "ConfigurationActivated",
    "ConfigurationOffered",
    "ConfigurationRolledBack",
    "Deadlines",
    "EnclaveEvent",
    "EnclaveProvisioned",
    "EnclaveProvisioning",
    "Exchange",
    "ExchangeEnded",
    "ExchangeState",
    "LinkState",
    "ProvisioningFailed",
    "RelayEvent",
    "RelayProvisioning",
    "RelayState",
    "TunnelConfig",
    "framing_of",
    "profile_of",
    "public_key_of",
]
