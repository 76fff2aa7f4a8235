"""Provisioning protocol ``wgvsock/prov/1``: how a relay configures an enclave and establishes trust in its key.

There is no I/O, no clock and no entropy. A message passes through the modules in this order: `frames`, `messages`,
`config` and `capabilities`, `pin` (the relay's signature), `transcript` (what binds the attestation to the messages).
`initiator` is the relay's side, `exchange` one connection at the enclave, and `responder` the enclave over many
connections. docs/protocol/provisioning.md specifies the protocol.
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
from wgvsock.provisioning.deadlines import (
    LISTEN_BACKLOG,
    MAX_WAITING,
    RETIREMENT,
    STRANGERS_BURST,
    STRANGERS_SHARE,
    Allowance,
    Deadlines,
)
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
    StrangersTurnedAway,
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
    "MAX_WAITING",
    "PROFILE_GSO",
    "PROFILE_PLAIN",
    "RETIREMENT",
    "STRANGERS_BURST",
    "STRANGERS_SHARE",
    "Allowance",
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
    "StrangersTurnedAway",
    "TunnelConfig",
    "framing_of",
    "profile_of",
    "public_key_of",
]
