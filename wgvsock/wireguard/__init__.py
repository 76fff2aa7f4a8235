"""The WireGuard protocol without I/O: no sockets, no clock, no entropy, no logging.

Other layers hold a `Device`, and call the three functions of the hot path for each packet. See
docs/protocol/wireguard.md.
"""

from wgvsock.wireguard.allowedips import AllowedIps
from wgvsock.wireguard.device import Device
from wgvsock.wireguard.events import (
    Dropped,
    DropReason,
    EndpointChanged,
    Event,
    HandshakeCompleted,
    HandshakeFailed,
    SessionExpired,
)
from wgvsock.wireguard.peer import Peer, Profile
from wgvsock.wireguard.primitives import generate_private_key, public_key
from wgvsock.wireguard.receive import open_into
from wgvsock.wireguard.send import peer_for_packet, seal_into
from wgvsock.wireguard.statistics import DeviceStatistics, PeerStatistics
from wgvsock.wireguard.timers import Timings

__all__ = [
    "AllowedIps",
    "Device",
    "DeviceStatistics",
    "DropReason",
    "Dropped",
    "EndpointChanged",
    "Event",
    "HandshakeCompleted",
    "HandshakeFailed",
    "Peer",
    "PeerStatistics",
    "Profile",
    "SessionExpired",
    "Timings",
    "generate_private_key",
    "open_into",
    "peer_for_packet",
    "public_key",
    "seal_into",
]
