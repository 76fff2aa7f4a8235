"""Frozen snapshots of the device's counters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from wgvsock.wireguard.events import DropReason


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer's counters.

    Attributes:
        endpoint: The source of the last authenticated message, or the configured endpoint.
        rx_bytes: Bytes of authenticated messages received, headers included, as ``wg`` counts them.
        tx_bytes: Bytes of messages sent, headers included.
        rx_packets: Number of authenticated messages received.
        tx_packets: Number of messages sent.
        last_handshake: Unix time of the last completed handshake, in nanoseconds, 0 if never.
        handshakes_initiated: Initiations sent.
        handshakes_completed: Handshakes in which the peer proved its keys, whichever side started them.
        staged_packets: Packets that are waiting for a handshake.
    """

    endpoint: Hashable | None
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    last_handshake: int
    handshakes_initiated: int
    handshakes_completed: int
    staged_packets: int


@dataclass(frozen=True, slots=True)
class DeviceStatistics:
    """The device's counters.

    Attributes:
        drops: Number of drops by reason. Reasons that never occurred are left out.
        virtio_header_drops: Drops for `DropReason.BAD_VIRTIO_HEADER`, by the header's fault.
        cookie_replies_sent: Handshake messages that were answered with a cookie.
        peers: Peers' counters, by public key.
    """

    drops: Mapping[DropReason, int]
    virtio_header_drops: Mapping[str, int]
    cookie_replies_sent: int
    peers: Mapping[bytes, PeerStatistics]
