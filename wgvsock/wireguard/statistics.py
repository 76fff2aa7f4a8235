"""Frozen snapshots of the device's counters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from wgvsock.wireguard.events import DropReason


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer's counters.

    Attributes:
        endpoint: Where its last authenticated message came from, or what was configured.
        rx_bytes: Bytes of authenticated messages, headers included, as ``wg`` counts.
        tx_bytes: Likewise, sent.
        rx_packets: Messages.
        tx_packets: Likewise, sent.
        last_handshake: Unix time of the last completed handshake in nanoseconds; 0 = never.
        handshakes_initiated: Initiations sent.
        handshakes_completed: Handshakes after which the peer proved its keys, whoever started them.
        staged_packets: Packets that wait for a handshake.
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
        drops: How often each reason occurred; those that never did are left out.
        virtio_header_drops: `DropReason.BAD_VIRTIO_HEADER` by what was wrong with the header.
        cookie_replies_sent: Handshake messages that were answered with a cookie.
        peers: By public key.
    """

    drops: Mapping[DropReason, int]
    virtio_header_drops: Mapping[str, int]
    cookie_replies_sent: int
    peers: Mapping[bytes, PeerStatistics]
