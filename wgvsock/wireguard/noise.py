"""The handshake: Noise IKpsk2 as specified in whitepaper sections 5.4.2, 5.4.3 and 5.4.5.

A comment with the paper's formula precedes the code that implements it. Subscripts: i initiator, r responder. S static
keys, E ephemeral keys, C the chaining key, H the hash, Q the preshared key. Steps that both sides share are functions.

A responder answers at once, so only the initiator's `PendingInitiation` and a peer's `Handshake` outlive a call. The
roles are independent: if two devices initiate at the same moment, both handshakes complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wgvsock.errors import RemoteProtocolError
from wgvsock.wireguard.constants import (
    CONSTRUCTION,
    IDENTIFIER,
    INITIATIONS_PER_SECOND,
    KEY_SIZE,
    TIMESTAMP_SIZE,
)
from wgvsock.wireguard.events import DropReason
from wgvsock.wireguard.messages import HandshakeInitiation, HandshakeResponse
from wgvsock.wireguard.primitives import (
    InvalidTag,
    Random,
    WeakKeyError,
    aead,
    aead_open,
    dh,
    dh_generate,
    hash_,
    kdf1,
    kdf2,
    kdf3,
    wipe,
)
from wgvsock.wireguard.tai64n import next_label

_INITIAL_CHAINING_KEY: Final = hash_(CONSTRUCTION)
_INITIAL_HASH: Final = hash_(_INITIAL_CHAINING_KEY, IDENTIFIER)
_MIN_INITIATION_INTERVAL: Final = 1 / INITIATIONS_PER_SECOND


class HandshakeRejectedError(RemoteProtocolError):
    """A handshake message must be ignored. The device counts `reason` and sends no answer."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(f"handshake message ignored: {reason.value}")
        self.reason = reason


class Identity:
    """A device's static key pair. The private key is inside OpenSSL, which cleanses it when this object is freed."""

    __slots__ = ("private", "public")

    def __init__(self, private_key: bytes) -> None:
        self.private = X25519PrivateKey.from_private_bytes(private_key)
        self.public = self.private.public_key().public_bytes_raw()


@dataclass(slots=True)
class TransportKeys:
    """The keys that a handshake yields (section 5.4.5), 32 bytes for each direction, as seen from this side."""

    sending: bytearray = field(repr=False)
    receiving: bytearray = field(repr=False)

    def wipe(self) -> None:
        """Overwrite both keys."""
        wipe(self.sending)
        wipe(self.receiving)


@dataclass(slots=True)
class PendingInitiation:
    """The initiator's state until the response: ephemeral private key, chaining key and hash."""

    local_index: int
    created_at: float
    ephemeral: X25519PrivateKey
    chaining_key: bytearray = field(repr=False)
    hash: bytes

    def wipe(self) -> None:
        """Overwrite the chaining key and drop the ephemeral key."""
        wipe(self.chaining_key)
        del self.ephemeral


class Handshake:
    """The state that one peer's handshakes share, whichever side starts them.

    Attributes:
        remote_static: The peer's public key, 32 bytes.
        preshared_key: Q, 32 bytes. All zeros stands for none (section 5.2).
        pending: The initiation that is waiting for its response, or None.
        latest_timestamp: The greatest timestamp from the peer, 12 bytes. An initiation must exceed it (section 5.1).
        last_sent_timestamp: The last timestamp that we sent, 12 bytes. Empty before the first.
        last_initiation_at: When the last initiation was consumed, in monotonic seconds.
    """

    __slots__ = (
        "_identity",
        "_static_static",
        "last_initiation_at",
        "last_sent_timestamp",
        "latest_timestamp",
        "pending",
        "preshared_key",
        "remote_static",
    )

    def __init__(self, remote_static: bytes) -> None:
        self.remote_static = remote_static
        self.preshared_key = bytearray(KEY_SIZE)
        self._identity: Identity | None = None
        self._static_static = bytearray()
        self.pending: PendingInitiation | None = None
        self.latest_timestamp = bytes(TIMESTAMP_SIZE)
        self.last_sent_timestamp = b""
        self.last_initiation_at = float("-inf")

    def set_identity(self, identity: Identity | None) -> None:
        """Set our identity, or None."""
        wipe(self._static_static)
        self._static_static = bytearray()
        self._identity = identity

    @property
    def static_static(self) -> bytearray:
        """DH(S_i, S_r), the same for both roles: 32 bytes. Empty without an identity, or for a peer key of low order.

        A multiplication takes about 50 µs. It is done only once, at the first handshake instead of the peer's creation:
        a device can be given 10,000 peers at once, and few of them will be heard from soon.
        """
        if not self._static_static and self._identity is not None:
            try:
                self._static_static += dh(self._identity.private, self.remote_static)
            except WeakKeyError:
                self._identity = None  # no identity can share a secret with such a key
        return self._static_static

    def forget_pending(self) -> None:
        """Wipe the pending initiation, if there is one."""
        if self.pending is not None:
            self.pending.wipe()
            self.pending = None

    def wipe(self) -> None:
        """Overwrite every secret."""
        self.forget_pending()
        wipe(self.preshared_key)
        self.set_identity(None)


def create_initiation(
    identity: Identity, handshake: Handshake, local_index: int, *, random: Random, unix_time: int, now: float
) -> HandshakeInitiation:
    """First message, initiator's side (section 5.4.2). It becomes the handshake's pending one.

    Args:
        identity: Our identity.
        handshake: The peer's handshake state, whose `static_static` must not be empty.
        local_index: I_i, an unused index.
        random: Entropy for the ephemeral key.
        unix_time: Wall clock in nanoseconds, for the timestamp.
        now: Monotonic seconds.

    Returns:
        The message, with its MACs unset.
    """
    # C_i := HASH(CONSTRUCTION);  H_i := HASH(C_i || IDENTIFIER);  H_i := HASH(H_i || S_r^pub)
    chaining_key = _INITIAL_CHAINING_KEY
    h = hash_(_INITIAL_HASH, handshake.remote_static)
    # (E_i^priv, E_i^pub) := DH-GENERATE()
    ephemeral, ephemeral_public = dh_generate(random)
    # C_i := KDF1(C_i, E_i^pub);  msg.ephemeral := E_i^pub;  H_i := HASH(H_i || msg.ephemeral)
    chaining_key, h = _mix_ephemeral(chaining_key, h, ephemeral_public)
    # (C_i, k) := KDF2(C_i, DH(E_i^priv, S_r^pub))
    chaining_key, key = kdf2(chaining_key, dh(ephemeral, handshake.remote_static))
    # msg.static := AEAD(k, 0, S_i^pub, H_i);  H_i := HASH(H_i || msg.static)
    encrypted_static = aead(key, 0, identity.public, h)
    h = hash_(h, encrypted_static)
    # (C_i, k) := KDF2(C_i, DH(S_i^priv, S_r^pub))
    chaining_key, key = kdf2(chaining_key, handshake.static_static)
    # msg.timestamp := AEAD(k, 0, TIMESTAMP(), H_i);  H_i := HASH(H_i || msg.timestamp)
    handshake.last_sent_timestamp = next_label(unix_time, handshake.last_sent_timestamp)
    encrypted_timestamp = aead(key, 0, handshake.last_sent_timestamp, h)
    h = hash_(h, encrypted_timestamp)

    handshake.forget_pending()
    handshake.pending = PendingInitiation(local_index, now, ephemeral, bytearray(chaining_key), h)
    return HandshakeInitiation(local_index, ephemeral_public, encrypted_static, encrypted_timestamp)


@dataclass(slots=True)
class OpenedInitiation:
    """An initiation whose static key has been decrypted. Further processing depends on the sender it claims."""

    message: HandshakeInitiation
    remote_static: bytes
    chaining_key: bytes = field(repr=False)
    hash: bytes


def open_initiation(identity: Identity, message: HandshakeInitiation) -> OpenedInitiation:
    """First message, responder's side, up to the initiator's static key (section 5.4.2).

    Raises:
        HandshakeRejectedError: It is not sealed for this identity, or its ephemeral key is weak.
    """
    # C_r := HASH(CONSTRUCTION);  H_r := HASH(C_r || IDENTIFIER);  H_r := HASH(H_r || S_r^pub)
    h = hash_(_INITIAL_HASH, identity.public)
    # C_r := KDF1(C_r, E_i^pub);  H_r := HASH(H_r || msg.ephemeral)
    chaining_key, h = _mix_ephemeral(_INITIAL_CHAINING_KEY, h, message.unencrypted_ephemeral)
    try:
        # (C_r, k) := KDF2(C_r, DH(S_r^priv, E_i^pub))
        chaining_key, key = kdf2(chaining_key, dh(identity.private, message.unencrypted_ephemeral))
        # S_i^pub := AEAD-open(k, 0, msg.static, H_r);  H_r := HASH(H_r || msg.static)
        remote_static = aead_open(key, 0, message.encrypted_static, h)
    except (InvalidTag, WeakKeyError):
        raise HandshakeRejectedError(DropReason.INVALID_HANDSHAKE) from None
    return OpenedInitiation(message, remote_static, chaining_key, hash_(h, message.encrypted_static))


def consume_initiation(opened: OpenedInitiation, handshake: Handshake, now: float) -> OpenedInitiation:
    """First message, responder's side, the rest: the timestamp, which proves the static key and prevents replays.

    Raises:
        HandshakeRejectedError: It is forged or replayed, exceeds `INITIATIONS_PER_SECOND`, or is from a peer whose key
            is of low order: anybody could have sealed it.
    """
    if not handshake.static_static:
        raise HandshakeRejectedError(DropReason.INVALID_HANDSHAKE)
    try:
        # (C_r, k) := KDF2(C_r, DH(S_r^priv, S_i^pub))
        chaining_key, key = kdf2(opened.chaining_key, handshake.static_static)
        # timestamp := AEAD-open(k, 0, msg.timestamp, H_r);  H_r := HASH(H_r || msg.timestamp)
        timestamp = aead_open(key, 0, opened.message.encrypted_timestamp, opened.hash)
    except InvalidTag:
        raise HandshakeRejectedError(DropReason.INVALID_HANDSHAKE) from None
    if timestamp <= handshake.latest_timestamp:
        # "The server keeps track of the greatest timestamp received per client and discards packets containing
        # timestamps less than or equal to it" (section 5.1).
        raise HandshakeRejectedError(DropReason.REPLAYED_INITIATION)
    if now < handshake.last_initiation_at + _MIN_INITIATION_INTERVAL:
        raise HandshakeRejectedError(DropReason.INITIATION_FLOOD)
    handshake.latest_timestamp = timestamp
    handshake.last_initiation_at = now
    h = hash_(opened.hash, opened.message.encrypted_timestamp)
    return OpenedInitiation(opened.message, opened.remote_static, chaining_key, h)


def create_response(
    consumed: OpenedInitiation, handshake: Handshake, local_index: int, random: Random
) -> tuple[HandshakeResponse, TransportKeys]:
    """Second message, responder's side (section 5.4.3).

    Args:
        consumed: From `consume_initiation`.
        handshake: The peer's handshake state.
        local_index: I_r, an unused index.
        random: Entropy for the ephemeral key.

    Returns:
        The message, with its MACs unset, and the session's keys.
    """
    ephemeral_i = consumed.message.unencrypted_ephemeral
    # (E_r^priv, E_r^pub) := DH-GENERATE()
    ephemeral, ephemeral_public = dh_generate(random)
    # C_r := KDF1(C_r, E_r^pub);  msg.ephemeral := E_r^pub;  H_r := HASH(H_r || msg.ephemeral)
    chaining_key, h = _mix_ephemeral(consumed.chaining_key, consumed.hash, ephemeral_public)
    # C_r := KDF1(C_r, DH(E_r^priv, E_i^pub));  C_r := KDF1(C_r, DH(E_r^priv, S_i^pub))
    chaining_key = kdf1(chaining_key, dh(ephemeral, ephemeral_i))
    chaining_key = kdf1(chaining_key, dh(ephemeral, handshake.remote_static))
    # (C_r, t, k) := KDF3(C_r, Q);  H_r := HASH(H_r || t)
    chaining_key, h, key = _mix_preshared_key(chaining_key, h, handshake.preshared_key)
    # msg.empty := AEAD(k, 0, "", H_r)
    response = HandshakeResponse(local_index, consumed.message.sender_index, ephemeral_public, aead(key, 0, b"", h))
    # (T_r^recv = T_i^send, T_r^send = T_i^recv) := KDF2(C_r, "")
    receiving, sending = kdf2(chaining_key, b"")
    return response, TransportKeys(bytearray(sending), bytearray(receiving))


def consume_response(
    identity: Identity, handshake: Handshake, message: HandshakeResponse
) -> tuple[TransportKeys, PendingInitiation]:
    """Second message, initiator's side (section 5.4.3).

    Returns:
        The session's keys, and the initiation that was answered, with its secrets wiped.

    Raises:
        HandshakeRejectedError: It does not answer the pending initiation, is forged, or the preshared keys differ. The
            pending initiation is kept for the genuine response.
    """
    pending = handshake.pending
    if pending is None or pending.local_index != message.receiver_index:
        raise HandshakeRejectedError(DropReason.UNEXPECTED_RESPONSE)
    ephemeral_r = message.unencrypted_ephemeral
    # C_i := KDF1(C_i, E_r^pub);  H_i := HASH(H_i || msg.ephemeral)
    chaining_key, h = _mix_ephemeral(pending.chaining_key, pending.hash, ephemeral_r)
    try:
        # C_i := KDF1(C_i, DH(E_i^priv, E_r^pub));  C_i := KDF1(C_i, DH(S_i^priv, E_r^pub))
        chaining_key = kdf1(chaining_key, dh(pending.ephemeral, ephemeral_r))
        chaining_key = kdf1(chaining_key, dh(identity.private, ephemeral_r))
        # (C_i, t, k) := KDF3(C_i, Q);  H_i := HASH(H_i || t)
        chaining_key, h, key = _mix_preshared_key(chaining_key, h, handshake.preshared_key)
        # "" := AEAD-open(k, 0, msg.empty, H_i)
        aead_open(key, 0, message.encrypted_nothing, h)
    except (InvalidTag, WeakKeyError):
        raise HandshakeRejectedError(DropReason.INVALID_HANDSHAKE) from None
    handshake.forget_pending()
    # (T_i^send = T_r^recv, T_i^recv = T_r^send) := KDF2(C_i, "")
    sending, receiving = kdf2(chaining_key, b"")
    return TransportKeys(bytearray(sending), bytearray(receiving)), pending


def _mix_ephemeral(chaining_key: bytes | bytearray, h: bytes, ephemeral_public: bytes) -> tuple[bytes, bytes]:
    """C := KDF1(C, E^pub);  H := HASH(H || E^pub)."""
    return kdf1(chaining_key, ephemeral_public), hash_(h, ephemeral_public)


def _mix_preshared_key(chaining_key: bytes, h: bytes, preshared_key: bytearray) -> tuple[bytes, bytes, bytes]:
    """(C, t, k) := KDF3(C, Q);  H := HASH(H || t). Returns C, H, k."""
    chaining_key, temporary, key = kdf3(chaining_key, preshared_key)
    return chaining_key, hash_(h, temporary), key
