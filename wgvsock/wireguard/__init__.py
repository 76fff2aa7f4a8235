"""The WireGuard protocol without I/O: no sockets, no clock, no entropy, no logging.

`Device` is what other layers hold; see docs/protocol/wireguard.md.
"""

from wgvsock.wireguard.allowedips import AllowedIps, Network
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
    "Network",
    "Peer",
    "PeerStatistics",
    "Profile",
    "SessionExpired",
    "Timings",
    "generate_private_key",
    "public_key",
]
