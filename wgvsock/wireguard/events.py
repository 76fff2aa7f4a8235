"""Events that the device reports to its owner: dropped datagrams and packets, and changes of peers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wgvsock.wireguard.peer import Peer


class DropReason(Enum):
    """Why something was dropped. The value is the reason in metrics."""

    # datagrams
    NO_IDENTITY = "no_identity"
    """The device has no private key."""
    MALFORMED_MESSAGE = "malformed_message"
    """Not one of the four messages, or of the wrong size."""
    INVALID_MAC1 = "invalid_mac1"
    """A handshake message that was not made for our public key."""
    RATE_LIMITED = "rate_limited"
    """Under load: more handshake messages than a source may send."""
    COOKIE_DEMANDED = "cookie_demanded"
    """Under load: answered with a cookie reply instead of a handshake response."""
    INVALID_HANDSHAKE = "invalid_handshake"
    """A handshake message that does not decrypt: wrong key, wrong preshared key, or forged."""
    UNKNOWN_PEER = "unknown_peer"
    """An initiation from a public key that is not a peer's."""
    REPLAYED_INITIATION = "replayed_initiation"
    INITIATION_FLOOD = "initiation_flood"
    UNEXPECTED_RESPONSE = "unexpected_response"
    """A handshake response without a pending initiation."""
    INVALID_COOKIE_REPLY = "invalid_cookie_reply"
    UNKNOWN_INDEX = "unknown_index"
    """Transport data for a keypair that we do not have."""
    EXPIRED_KEYPAIR = "expired_keypair"
    """Transport data after REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES."""
    INVALID_TAG = "invalid_tag"
    """Transport data that does not decrypt."""
    REPLAYED_COUNTER = "replayed_counter"
    OVERSIZED = "oversized"
    """The decrypted packet would not fit into the caller's buffer."""
    # decrypted packets
    MALFORMED_PACKET = "malformed_packet"
    """Neither IPv4 nor IPv6, or shorter than its header says."""
    BAD_VIRTIO_HEADER = "bad_virtio_header"
    """A virtio_net_hdr that the kernel must not see."""
    FORBIDDEN_SOURCE = "forbidden_source"
    """The source address is not among the sending peer's allowed IPs."""
    # packets to send
    NO_ROUTE = "no_route"
    """No peer's allowed IPs contain the destination."""
    NO_ENDPOINT = "no_endpoint"
    """The peer has no session and no endpoint to start one with."""
    STAGING_FULL = "staging_full"
    """Too many packets were waiting for a handshake: the oldest was dropped."""
    HANDSHAKE_FAILED = "handshake_failed"
    """The packets were waiting for a handshake that was given up."""
    PEER_REMOVED = "peer_removed"
    # our owner is slow
    QUEUE_FULL = "queue_full"
    """A queue to the owner was full: the oldest entry was dropped."""


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """The peer has proved its static key and the preshared key.

    The initiator knows it when the response decrypts, the responder with the new keypair's first transport message.

    Attributes:
        peer: The peer.
        initiator: Whether this side started the handshake.
        duration: Seconds since the initiation was created (initiator) or consumed (responder).
    """

    peer: Peer
    initiator: bool
    duration: float


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """REKEY_ATTEMPT_TIME passed without a response. Staged packets were dropped. The next packet starts a handshake."""

    peer: Peer
    attempts: int


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """There was no handshake for three times REJECT_AFTER_TIME, so all keys of the peer were wiped (section 6.3)."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """An authenticated message came from a new endpoint. Replies go there from now on (section 2.1, roaming)."""

    peer: Peer
    old: Hashable | None
    new: Hashable


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something was dropped. `endpoint` is the source of a datagram, and `peer` its peer, if known."""

    reason: DropReason
    endpoint: Hashable | None = None
    peer: Peer | None = None


Event = HandshakeCompleted | HandshakeFailed | SessionExpired | EndpointChanged | Dropped
