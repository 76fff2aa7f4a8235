"""The status snapshot, which ``wgvsock status --json`` prints and from which the metrics are made.

It is a tree of JSON values (`wgvsock.telemetry.schema`). It contains public keys, but never secrets.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from wgvsock.release import release
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.tunnel.tunnel import TunnelStatistics
from wgvsock.wireguard import Device, Peer

Samples = list[tuple[str, float]]
"""Labels and values of one metric."""


def key_text(key: bytes | None) -> str | None:
    """A 32-byte public key in base64, as ``wg`` writes it."""
    return None if key is None else base64.b64encode(key).decode()


def service_status(role: str, name: str, pid: int, state: str, *, ready: bool) -> dict[str, Any]:
    """The first part of every service's status."""
    return {"schema": SCHEMA, "role": role, "name": name, "pid": pid, "state": state, "ready": ready}


def wireguard_status(device: Device, interface: str, now: float) -> dict[str, Any]:
    """The status of the interface and its peers. `now` is in monotonic seconds."""
    return {
        "interface": interface,
        "public_key": key_text(device.public_key),
        "peers": [_peer_status(peer, now) for peer in device.peers.values()],
    }


def _peer_status(peer: Peer, now: float) -> dict[str, Any]:
    handshake_age = None if not peer.last_handshake else max(0.0, (time.time_ns() - peer.last_handshake) / 1e9)
    silent = now - peer.last_authenticated
    return {
        "public_key": key_text(peer.public_key),
        "endpoint": str(getattr(peer.endpoint, "address", peer.endpoint)),
        "allowed_ips": [str(network) for network in peer.allowed_ips],
        "profile": peer.profile.value,
        "handshake_age_seconds": rounded_seconds(handshake_age),
        "silent_seconds": None if silent == float("inf") else rounded_seconds(silent),
        "handshakes_completed": peer.handshakes_completed,
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
        "rx_packets": peer.rx_packets,
        "tx_packets": peer.tx_packets,
    }


def counters(statistics: TunnelStatistics) -> dict[str, Any]:
    """Drops by reason, acknowledgements not sent, whether super-packets are on, and how many were refused whole."""
    found: dict[str, Any] = {
        "dropped": statistics.drops,
        "acknowledgements_superseded": statistics.acknowledgements_superseded,
        "offloads": statistics.offloads,
    }
    if statistics.super_packets_refused:  # only some kernels refuse any
        found["super_packets_refused"] = statistics.super_packets_refused
    return found


def application_status(state: ApplicationState) -> dict[str, Any]:
    """The status of an enclave's application."""
    return {
        "phase": state.phase.value,
        "running": state.phase is Phase.RUNNING,
        "starts": state.starts,
        "exit_status": state.exit_status,
        "ready": state.ready,
        "why": state.why,
    }


def rounded_seconds(seconds: float | None) -> float | None:
    """Seconds, rounded to milliseconds as in the status, or None."""
    return None if seconds is None else round(seconds, 3)


def metrics(status: Mapping[str, Any]) -> str:
    """The snapshot in Prometheus's text exposition format 0.0.4.

    A relay's metrics about one tunnel have the label ``enclave``.
    """
    role = status["role"]
    tunnels: list[tuple[dict[str, str], Mapping[str, Any]]] = [({}, status)]
    if "enclaves" in status:
        tunnels = [({"enclave": enclave["name"]}, enclave) for enclave in status["enclaves"]]
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, samples: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP wgvsock_{name} {about}", f"# TYPE wgvsock_{name} {kind}"))
        lines.extend(f"wgvsock_{name}{labels} {value:.15g}" for labels, value in samples)

    def of_tunnels(read: Callable[[Mapping[str, Any]], Iterable[tuple[dict[str, str], float]]]) -> Samples:
        return [(_labels(**own, **labels), value) for own, tunnel in tunnels for labels, value in read(tunnel)]

    def of_peers(key: str) -> Samples:
        return of_tunnels(
            lambda tunnel: [
                ({"peer": peer["public_key"]}, peer[key])
                for peer in (tunnel["wireguard"] or {"peers": ()})["peers"]
                if peer[key] is not None
            ]
        )

    metric("build_info", "gauge", "Always 1, with the build as labels.", [(_build(), 1)])
    metric("up", "gauge", "1 while the service runs.", [(_labels(role=role, state=status["state"]), 1)])
    metric("ready", "gauge", "1 while packets may pass.", [(_labels(role=role), int(status["ready"]))])
    if "enclaves" in status:
        metric("enclave_ready", "gauge", "1 while the enclave's packets may pass.",
               of_tunnels(lambda tunnel: [({"state": tunnel["state"]}, int(tunnel["ready"]))]))  # fmt: skip
        metric("attestation_timestamp_seconds", "gauge", "Unix time at which the enclave's document was signed.",
               of_tunnels(_attested))  # fmt: skip
        metric("trusted_seconds", "gauge", "Time for which the last attestation remains valid.",
               of_tunnels(lambda tunnel: [({}, tunnel["provisioning"]["trusted_for_seconds"])]))  # fmt: skip
    if "processor_seconds" in status:
        metric("processor_seconds_total", "counter", "Processor time used by the service.",
               [("", status["processor_seconds"])])  # fmt: skip
    metric("provisioning_total", "counter", "Provisioning exchanges by outcome.",
           of_tunnels(lambda tunnel: _by("outcome", tunnel["provisioning"], "attempts")))  # fmt: skip
    for direction in ("rx", "tx"):
        for unit in ("bytes", "packets"):
            metric(f"peer_{direction}_{unit}_total", "counter", f"WireGuard {unit}, {direction}.",
                   of_peers(f"{direction}_{unit}"))  # fmt: skip
    metric("peer_handshake_age_seconds", "gauge", "Time since the last completed handshake.",
           of_peers("handshake_age_seconds"))  # fmt: skip
    metric("dropped_total", "counter", "Packets and messages dropped, by reason.",
           of_tunnels(lambda tunnel: _by("reason", tunnel["counters"], "dropped")))  # fmt: skip
    if role == "enclave":
        metric("egress_denied_total", "counter", "Packets that the image's own policy refused, by rule or reason.",
               of_tunnels(lambda tunnel: _by("by", tunnel.get("egress"), "denied")))  # fmt: skip
    if "enclaves" in status:
        metric("path_rtt_seconds", "gauge", "Round-trip time of echo to the enclave's kernel, last and of the last 60.",
               of_tunnels(_path_times))  # fmt: skip
        metric("path_sent_total", "counter", "Echo requests to the enclave's kernel.",
               of_tunnels(lambda tunnel: _path_count(tunnel, "sent")))  # fmt: skip
        metric("path_lost_total", "counter", "Echo requests that were not answered in time.",
               of_tunnels(lambda tunnel: _path_count(tunnel, "lost")))  # fmt: skip
        metric("repairs_total", "counter", "Changes by other programs to this machine that were repaired, by kind.",
               of_tunnels(lambda tunnel: _by("kind", tunnel["nat"], "repairs")))  # fmt: skip
        metric("flows_deleted_total", "counter", "Tracked flows that the rules contradicted, by kind.",
               of_tunnels(lambda tunnel: _by("kind", tunnel["nat"], "deleted_flows")))  # fmt: skip
        for key, (name, kind, about) in _ENGINE.items():
            samples = of_tunnels(lambda tunnel, key=key: _engine(tunnel, key))  # type: ignore[misc]
            if samples:
                metric(f"uplink_{name}", kind, about, samples)
        metric("dns_queries_total", "counter", "Names that the relay looked up for the enclave, by outcome.",
               of_tunnels(lambda tunnel: _by("outcome", tunnel.get("dns"), "queries")))  # fmt: skip
        metric("dns_upstream_total", "counter", "Problems with the relay's own name servers, by kind.",
               of_tunnels(lambda tunnel: _by("kind", tunnel.get("dns"), "upstream")))  # fmt: skip
        metric("dns_in_flight", "gauge", "Lookups in progress.",
               of_tunnels(lambda tunnel: [({}, tunnel["dns"]["in_flight"])] if tunnel.get("dns") else []))  # fmt: skip
        metric("egress_flows_total", "counter", "First packets of flows, by the rule or reason that decided.",
               of_tunnels(_egress_flows))  # fmt: skip
        for key, about in _EGRESS_COUNTS.items():
            kind = "gauge" if key == "pins" else "counter"
            metric(f"egress_{key}" + ("" if kind == "gauge" else "_total"), kind, about,
                   of_tunnels(lambda tunnel, key=key: _egress_count(tunnel, key)))  # type: ignore[misc]  # fmt: skip
    offsets = of_tunnels(lambda tunnel: _known({}, tunnel.get("clock_offset_seconds")))
    if offsets:
        metric("clock_offset_seconds", "gauge", "Time by which the enclave's clock is ahead of the relay's.", offsets)
    for key, (name, kind, about) in _PROCESSOR.items():
        samples = of_tunnels(lambda tunnel, key=key: _known({}, (tunnel.get("processor") or {}).get(key)))  # type: ignore[misc]
        if samples:
            metric(f"enclave_{name}", kind, about, samples)
    for key, kind, about in _OF_APPLICATIONS:
        samples = of_tunnels(partial(_of_application, key))
        if samples:
            metric(f"application_{key}{'_total' if kind == 'counter' else ''}", kind, about, samples)
    return "\n".join(lines) + "\n"


_EGRESS_COUNTS: Final = {
    "pins": "Addresses of the policy's names.",
    "names_refused": "Queries for names that the policy does not allow.",
    "addresses_withheld": "Addresses that were removed from answers: in closed networks, or the relay's own.",
}


_PROCESSOR: Final = {
    "processors": ("processors", "gauge", "Processors of the enclave, as its agent reports them."),
    "busy_seconds": ("processor_seconds_total", "counter", "Processor time used in the enclave, on all processors."),
    "agent_seconds": ("agent_processor_seconds_total", "counter", "Processor time used by the enclave's agent."),
}


_ENGINE: Final = {
    "connections": ("connections", "gauge", "Sockets of the user-space uplink for the enclave's flows."),
    "max_connections": ("max_connections", "gauge", "Most sockets that the user-space uplink may have."),
    "crowded": ("crowded_total", "counter", "Flows that were refused because there were too many."),
    "dropped": ("dropped_total", "counter", "Packets for the enclave that the relay did not read in time."),
    "odd": ("odd_total", "counter", "Packets from the enclave that cannot be carried, such as fragments."),
    "restarts": ("restarts_total", "counter", "How many times the user-space uplink's engine has died."),
    "resident": ("resident_bytes", "gauge", "Memory of the user-space uplink's engine."),
}


def _engine(tunnel: Mapping[str, Any], key: str) -> list[tuple[dict[str, str], float]]:
    engine = (tunnel.get("nat") or {}).get("engine")
    return [] if engine is None else [({}, engine[key])]


def _egress_count(tunnel: Mapping[str, Any], key: str) -> list[tuple[dict[str, str], float]]:
    egress = tunnel.get("egress")
    return [] if egress is None else [({}, egress[key])]


def _build() -> str:
    ours = release()
    return _labels(version=ours.version, commit=ours.commit or "", build=ours.build or "")


def _attested(tunnel: Mapping[str, Any]) -> list[tuple[dict[str, str], float]]:
    attestation = tunnel["attestation"]
    return [] if attestation is None else [({}, datetime.fromisoformat(attestation["timestamp"]).timestamp())]


def _by(label: str, section: Mapping[str, Any] | None, key: str) -> list[tuple[dict[str, str], float]]:
    return [({label: name}, count) for name, count in (section or {key: {}})[key].items()]


def _egress_flows(tunnel: Mapping[str, Any]) -> list[tuple[dict[str, str], float]]:
    """Flows by rule. The default's label says whether it allows or denies, for use in alerts."""
    egress = tunnel.get("egress") or {"default": "", "flows": {}}
    by_default = f"default {egress['default']}"
    return [({"rule": by_default if rule == "default" else rule}, count) for rule, count in egress["flows"].items()]


_OF_APPLICATIONS: Final = (
    ("running", "gauge", "1 while a process of the application is running."),
    ("ready", "gauge", "1 while the application's own probe succeeds."),
    ("exit_status", "gauge", "Exit status of the last process that ended, or 128 plus the number of its signal."),
    ("starts", "counter", "Starts of the application."),
    ("lost_lines", "counter", "Lines of output that were lost because they were written too fast."),
    ("lost_bytes", "counter", "Bytes of output that were lost, including those of incomplete lines."),
)


def _of_application(key: str, tunnel: Mapping[str, Any]) -> list[tuple[dict[str, str], float]]:
    return _known({}, (tunnel.get("application") or {}).get(key))


def _known(labels: dict[str, str], value: float | None) -> list[tuple[dict[str, str], float]]:
    return [] if value is None else [(labels, float(value))]


def _path_times(tunnel: Mapping[str, Any]) -> list[tuple[dict[str, str], float]]:
    times = _by("stat", tunnel.get("path"), "rtt_ms")
    return [(labels, milliseconds / 1000) for labels, milliseconds in times if milliseconds is not None]


def _path_count(tunnel: Mapping[str, Any], key: str) -> list[tuple[dict[str, str], float]]:
    path = tunnel.get("path")
    return [] if path is None else [({}, path[key])]


def _labels(**labels: str) -> str:
    escaped = (f'{key}="{_escape(value)}"' for key, value in labels.items())
    return "{" + ",".join(escaped) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
