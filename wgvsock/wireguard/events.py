"""What the device tells its owner: why datagrams and packets were dropped, and what happened to peers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wgvsock.wireguard.peer import Peer


class DropReason(Enum):
    """Why something was dropped; the value is the word in metrics."""

    # datagrams
    NO_IDENTITY = "no_identity"
    """The device has no private key."""
    MALFORMED_MESSAGE = "malformed_message"
    """Not one of the four messages, or of a wrong size."""
    INVALID_MAC1 = "invalid_mac1"
    """A handshake message that was not made for our public key."""
    RATE_LIMITED = "rate_limited"
    """Under load: more handshake messages than a source address may send."""
    COOKIE_DEMANDED = "cookie_demanded"
    """Under load: answered with a cookie reply in place of a handshake response."""
    INVALID_HANDSHAKE = "invalid_handshake"
    """A handshake message that does not decrypt: wrong key, wrong preshared key, or forged."""
    UNKNOWN_PEER = "unknown_peer"
    """An initiation from a public key that is no peer's."""
    REPLAYED_INITIATION = "replayed_initiation"
    INITIATION_FLOOD = "initiation_flood"
    UNEXPECTED_RESPONSE = "unexpected_response"
    """A handshake response that answers no pending initiation."""
    INVALID_COOKIE_REPLY = "invalid_cookie_reply"
    UNKNOWN_INDEX = "unknown_index"
    """Transport data for a keypair that we do not have."""
    EXPIRED_KEYPAIR = "expired_keypair"
    """Transport data after REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES."""
    INVALID_TAG = "invalid_tag"
    """Transport data that does not decrypt."""
    REPLAYED_COUNTER = "replayed_counter"
    OVERSIZED = "oversized"
    """The decrypted packet would not fit into the buffer that the caller gave."""
    # decrypted packets
    MALFORMED_PACKET = "malformed_packet"
    """Not IPv4 or IPv6, or longer in its header than in truth."""
    BAD_VIRTIO_HEADER = "bad_virtio_header"
    """A virtio_net_hdr that the kernel must not see."""
    FORBIDDEN_SOURCE = "forbidden_source"
    """The source address is not among the sending peer's allowed IPs."""
    # packets to send
    NO_ROUTE = "no_route"
    """No peer's allowed IPs hold the destination."""
    NO_ENDPOINT = "no_endpoint"
    """The peer has no session and no endpoint to start one with."""
    STAGING_FULL = "staging_full"
    """Too many packets wait for a handshake: the oldest gave way."""
    HANDSHAKE_FAILED = "handshake_failed"
    """The packets waited for a handshake that was given up."""
    PEER_REMOVED = "peer_removed"
    # our owner is slow
    QUEUE_FULL = "queue_full"
    """A queue towards the owner was full: the oldest entry gave way."""


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """The peer has proved its static key and the preshared key.

    The initiator knows so when the response opens, the responder with the first transport message of the new keypair.

    Attributes:
        peer: Whose handshake it was.
        initiator: Whether this side started it.
        duration: Seconds from the creation (consumption) of the initiation.
    """

    peer: Peer
    initiator: bool
    duration: float


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """REKEY_ATTEMPT_TIME went by without a response; staged packets were dropped, the next packet starts again."""

    peer: Peer
    attempts: int


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """No handshake for three times REJECT_AFTER_TIME: all keys of the peer were wiped (section 6.3)."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """An authenticated message came from somewhere new: replies go there from now on (section 2.1, roaming)."""

    peer: Peer
    old: Hashable | None
    new: Hashable


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something was dropped. `endpoint` is where a datagram came from, `peer` whose it was, as far as known."""

    reason: DropReason
    endpoint: Hashable | None = None
    peer: Peer | None = None


Event = HandshakeCompleted | HandshakeFailed | SessionExpired | EndpointChanged | Dropped
