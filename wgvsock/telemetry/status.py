"""The status snapshot: what ``wgvsock status --json`` prints and what the metrics are made from.

It is a tree of JSON values with ``"schema": "wgvsock/v1"``. Public keys are in it, secrets never.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any, Final

from wgvsock.tunnel.tunnel import TunnelStatistics
from wgvsock.wireguard import Device, DropReason, Peer

SCHEMA: Final = "wgvsock/v1"


def key_text(key: bytes | None) -> str | None:
    """A public key as ``wg`` writes it: base64."""
    return None if key is None else base64.b64encode(key).decode()


def wireguard_status(device: Device, interface: str, now: float) -> dict[str, Any]:
    """Interface and peers; `now` is monotonic seconds."""
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
        "handshake_age_seconds": _rounded(handshake_age),
        "silent_seconds": None if silent == float("inf") else _rounded(silent),
        "handshakes_completed": peer.handshakes_completed,
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
        "rx_packets": peer.rx_packets,
        "tx_packets": peer.tx_packets,
    }


def counters(statistics: TunnelStatistics) -> dict[str, Any]:
    """What was dropped, by reason, and whether super-packets are on."""
    drops = {reason.value: count for reason, count in statistics.device.drops.items()}
    drops.pop(DropReason.BAD_VIRTIO_HEADER.value, None)  # the same, told apart by what was wrong with the header
    drops |= {
        **statistics.device.virtio_header_drops,
        "unreachable": statistics.dropped_unreachable,
        "backlog": statistics.dropped_backlog,
        "offloaded": statistics.dropped_offloaded,
        "kernel": statistics.dropped_by_kernel,
    }
    return {"dropped": {reason: count for reason, count in drops.items() if count}, "offloads": statistics.offloads}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def metrics(status: Mapping[str, Any]) -> str:
    """The snapshot in Prometheus's text exposition format 0.0.4."""
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, samples: Mapping[str, float]) -> None:
        lines.extend((f"# HELP wgvsock_{name} {about}", f"# TYPE wgvsock_{name} {kind}"))
        lines.extend(f"wgvsock_{name}{labels} {value:.15g}" for labels, value in samples.items())

    role = status["role"]
    metric("up", "gauge", "1 while the service runs.", {_labels(role=role, state=status["state"]): 1})
    metric("ready", "gauge", "1 while packets may pass.", {_labels(role=role): int(status["ready"])})
    attempts = status["provisioning"]["attempts"]
    metric("provisioning_total", "counter", "Provisioning exchanges by outcome.",
           {_labels(outcome=outcome): count for outcome, count in attempts.items()})  # fmt: skip
    peers = status["wireguard"]["peers"]
    for direction in ("rx", "tx"):
        for unit in ("bytes", "packets"):
            metric(f"peer_{direction}_{unit}_total", "counter", f"WireGuard {unit}, {direction}.",
                   {_labels(peer=peer["public_key"]): peer[f"{direction}_{unit}"] for peer in peers})  # fmt: skip
    ages = {_labels(peer=peer["public_key"]): peer["handshake_age_seconds"] for peer in peers}
    metric("peer_handshake_age_seconds", "gauge", "Since the last completed handshake.",
           {labels: age for labels, age in ages.items() if age is not None})  # fmt: skip
    metric("dropped_total", "counter", "Packets and messages dropped, by reason.",
           {_labels(reason=reason): count for reason, count in status["counters"]["dropped"].items()})  # fmt: skip
    return "\n".join(lines) + "\n"


def _labels(**labels: str) -> str:
    escaped = (f'{key}="{_escape(value)}"' for key, value in labels.items())
    return "{" + ",".join(escaped) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
