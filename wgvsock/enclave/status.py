"""The agent's state at one moment, and its form as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wgvsock.egress.gate import GateSnapshot, Refused
from wgvsock.egress.policy import Policy
from wgvsock.provisioning import LinkState, TunnelConfig
from wgvsock.telemetry.reports import ApplicationState
from wgvsock.telemetry.status import application_status, rounded_seconds, service_status


@dataclass(frozen=True, slots=True)
class EgressSnapshot:
    """The egress policy that is measured into the image, and what it refused.

    Attributes:
        policy: The rules.
        gate: What was refused.
        now: The time in seconds, on the gate's clock.
    """

    policy: Policy
    gate: GateSnapshot
    now: float


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """The state of one enclave's agent. For display only: no decision depends on it.

    Attributes:
        name: The agent's name.
        pid: Its process identifier.
        state: State of the link to the relay.
        pinned: Whether only the holder of the pinned key may provision this enclave.
        attempts: Exchanges by outcome.
        wireguard: Interface and peers, as `wgvsock.telemetry.status` writes them.
        counters: Dropped packets by reason, as `wgvsock.telemetry.status` writes them.
        network: The settings in force, or None if no relay has proved itself.
        application: The application's state, or None if there is none or it has not been started.
        clock_offset: Seconds by which the clock is ahead of the relay's, or None if no relay has told its time.
        egress: The image's own egress policy, or None if it has none.
    """

    name: str
    pid: int
    state: LinkState
    pinned: bool
    attempts: Mapping[str, int]
    wireguard: Mapping[str, Any]
    counters: Mapping[str, Any]
    network: TunnelConfig | None
    application: ApplicationState | None
    clock_offset: float | None = None
    egress: EgressSnapshot | None = None

    @property
    def ready(self) -> bool:
        """Whether packets can pass."""
        return self.network is not None


def enclave_status(agent: AgentSnapshot) -> dict[str, Any]:
    """The whole snapshot as JSON values."""
    return {
        **service_status("enclave", agent.name, agent.pid, agent.state.name.lower(), ready=agent.ready),
        "provisioning": {"attempts": dict(agent.attempts)},
        "pinned": agent.pinned,
        "wireguard": agent.wireguard,
        "network": None if agent.network is None else _network(agent.network),
        "application": None if agent.application is None else application_status(agent.application),
        "clock_offset_seconds": rounded_seconds(agent.clock_offset),
        "egress": None if agent.egress is None else _egress(agent.egress),
        "counters": agent.counters,
    }


def _egress(egress: EgressSnapshot) -> dict[str, Any]:
    return {
        "default": "allow" if egress.policy.allows_by_default else "deny",
        "rules": {rule.key: str(rule) for rule in (*egress.policy.deny, *egress.policy.allow)},
        "denied": dict(egress.gate.denied),
        "refused": [_refused(refused, egress.now) for refused in egress.gate.refused],
        "incoming_flows": egress.gate.incoming,
    }


def _refused(refused: Refused, now: float) -> dict[str, Any]:
    packet = refused.packet
    return {
        "destination": str(refused.destination),
        "protocol": packet.kind or str(refused.protocol),
        "port": refused.port if packet.kind in {"tcp", "udp"} else None,
        "by": refused.by,
        "count": refused.count,
        "last_seconds": rounded_seconds(now - refused.at),
    }


def _network(config: TunnelConfig) -> dict[str, Any]:
    return {
        "addresses": [str(address) for address in config.addresses],
        "routes": [str(network) for network in config.allowed_ips],
        "mtu": config.mtu,
        "dns": [str(server) for server in config.nameservers],
    }
