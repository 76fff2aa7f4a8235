"""The relay's state at one moment: frozen values, made by the parts and rendered by `wgvsock.relay.status`.

They are for display only. No decision depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.errors import WgvsockError
from wgvsock.relay.enclaves.application import ApplicationSnapshot
from wgvsock.relay.enclaves.processor import ProcessorSnapshot
from wgvsock.relay.judgements import Refusal
from wgvsock.relay.orders import Order
from wgvsock.relay.uplink.base import UplinkSnapshot
from wgvsock.system.nitro_cli import EnclaveInfo
from wgvsock.tunnel.probe import PathSnapshot


class State(Enum):
    """The state of an enclave's service, or of the relay."""

    STARTING = "starting"
    PROVISIONING = "provisioning"
    HANDSHAKING = "handshaking"
    READY = "ready"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The conditions of readiness. All of them have to hold.

    Attributes:
        attested: The enclave passed every check and is still trusted.
        handshake: The tunnel is up and its last handshake is recent enough.
        rules: The packet filter lets packets pass.
        uplink: Interfaces, forwarding and rules were in order at the last check.
        path: Packets reach the enclave's kernel and come back. None means unknown and does not prevent readiness. See
            `wgvsock.tunnel.probe`.
        application: The application's own probe says that it is ready. None means that it has no probe or that there
            are no reports, and does not prevent readiness.
    """

    attested: bool
    handshake: bool
    rules: bool
    uplink: bool = True
    path: bool | None = None
    application: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether packets may pass."""
        known = self.path is not False and self.application is not False
        return self.attested and self.handshake and self.rules and self.uplink and known


@dataclass(frozen=True, slots=True)
class Attestation:
    """The attestation in force.

    Attributes:
        enclave: The verifier's result.
        capabilities: The negotiated capabilities.
        handshake_seconds: Duration of the handshake that followed.
        exchange_seconds: Duration of the exchange, most of which is spent in the security module.
        at: When it came into force, in monotonic seconds.
    """

    enclave: AttestedEnclave
    capabilities: tuple[str, ...]
    handshake_seconds: float
    exchange_seconds: float = 0.0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class EnclaveSnapshot:
    """One enclave.

    Attributes:
        name: The enclave's name.
        state: State of its service.
        readiness: Whether packets may pass, and if not, why.
        address: Address of its WireGuard stream.
        launched: What nitro-cli reports about it; None if the relay does not launch it, or has not launched it yet.
        attestation: The attestation in force; None if there is none.
        root_is_aws: Whether AWS's root is the only accepted one.
        debug_allowed: Whether enclaves in debug mode are accepted.
        attempts: Number of exchanges by result.
        attested_for: Seconds since the enclave was attested.
        next_attestation: Seconds until the next attestation is due.
        trusted_for: Seconds for which the last attestation remains valid.
        error: The error that ended the last attempt; None if it succeeded.
        refusal: The last refused document, however long ago; None if there was none.
        wireguard: Interface and peers, as `wgvsock.telemetry.status` writes them; None before there is a tunnel.
        counters: Numbers of dropped packets, as `wgvsock.telemetry.status` writes them; None before there is a tunnel.
        uplink: State of the uplink; None before it is prepared.
        path: Results of the path probe; None before there is a tunnel.
        application: State of its application; None if unknown.
        clock_offset: Seconds that its clock is ahead of the relay's; None if unknown.
        processor: Its processor use; None if unknown.
        dns: State of its DNS forwarder; None if the enclave asks name servers directly.
        replacement: The enclave that is about to replace it; None if there is none.
    """

    name: str
    state: State
    readiness: Readiness
    address: str
    launched: EnclaveInfo | None
    attestation: Attestation | None
    root_is_aws: bool
    debug_allowed: bool
    attempts: Mapping[str, int]
    next_attestation: float
    trusted_for: float
    error: WgvsockError | None
    wireguard: Mapping[str, Any] | None
    counters: Mapping[str, Any] | None
    uplink: UplinkSnapshot | None
    path: PathSnapshot | None = None
    application: ApplicationSnapshot | None = None
    clock_offset: float | None = None
    processor: ProcessorSnapshot | None = None
    dns: ForwarderSnapshot | None = None
    replacement: EnclaveSnapshot | None = None
    refusal: Refusal | None = None
    attested_for: float = 0.0


@dataclass(frozen=True, slots=True)
class RelaySnapshot:
    """The whole relay.

    Attributes:
        name: The relay's name.
        pid: Process ID of the relay.
        state: State of the relay.
        enclaves: The enclaves that it serves.
        reload: The last reload; None if there was none.
    """

    name: str
    pid: int
    state: State
    enclaves: tuple[EnclaveSnapshot, ...]
    reload: Order | None = None

    @property
    def ready(self) -> bool:
        """Whether the packets of every enclave may pass. A relay without enclaves is not ready."""
        return bool(self.enclaves) and all(enclave.readiness.ready for enclave in self.enclaves)
