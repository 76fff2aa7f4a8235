"""The protocol's numbers: first what the WireGuard whitepaper fixes, then what this implementation chose.

Section numbers are those of "WireGuard: Next Generation Kernel Network Tunnel" (Donenfeld, 2020 revision).
"""

from __future__ import annotations

from typing import Final

# --- Specification -------------------------------------------------------------------------------------------------

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"
"""Section 5.4."""

KEY_SIZE: Final = 32
"""Public, private, preshared and symmetric keys, in bytes."""
HASH_SIZE: Final = 32
TAG_SIZE: Final = 16
"""What AEAD appends to a plaintext, in bytes (RFC 8439, section 2.8)."""
MAC_SIZE: Final = 16
COOKIE_SIZE: Final = 16
COOKIE_NONCE_SIZE: Final = 24
TIMESTAMP_SIZE: Final = 12

HANDSHAKE_INITIATION: Final = 1
HANDSHAKE_RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT_DATA: Final = 4
"""Message types: a byte and three reserved zero bytes, that is a little-endian 32-bit integer (section 5.4)."""

HANDSHAKE_INITIATION_SIZE: Final = 148
HANDSHAKE_RESPONSE_SIZE: Final = 92
COOKIE_REPLY_SIZE: Final = 64
TRANSPORT_HEADER_SIZE: Final = 16
"""Type, receiver index and counter in front of the encrypted packet, in bytes (section 5.4.6)."""
TRANSPORT_OVERHEAD: Final = TRANSPORT_HEADER_SIZE + TAG_SIZE
"""What transport data adds to its plaintext; also the size of a keepalive, the smallest of all messages."""
PADDING_MULTIPLE: Final = 16
"""Plaintext packets are zero-padded to a multiple of this many bytes (section 5.4.6)."""

REKEY_AFTER_MESSAGES: Final = 2**60
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1
REKEY_AFTER_TIME: Final = 120.0
REJECT_AFTER_TIME: Final = 180.0
REKEY_ATTEMPT_TIME: Final = 90.0
REKEY_TIMEOUT: Final = 5.0
KEEPALIVE_TIMEOUT: Final = 10.0
"""Section 6.1; times in seconds."""

COOKIE_SECRET_MAX_AGE: Final = 120.0
"""How long the responder's secret, and thus a cookie, lives (section 5.4.7), in seconds."""

# --- Implementation ------------------------------------------------------------------------------------------------

REKEY_TIMEOUT_JITTER: Final = 1 / 3
"""Section 6.1 asks for jitter on retries; the Linux implementation takes up to a third of a second."""

COOKIE_SECRET_LATENCY: Final = 5.0
"""The sender stops using a cookie this long before the responder forgets it, for what is still on its way."""

MAX_STAGED_PACKETS: Final = 128
"""Packets that wait for a handshake, for each peer: a window of TCP connections, and at 64 KiB each 8 MiB."""

MAX_QUEUED_DATAGRAMS: Final = 1024
MAX_QUEUED_PACKETS: Final = 1024
MAX_QUEUED_EVENTS: Final = 256
"""Bounds of the device's queues, which the owner drains after every call: reached only when it does not."""

INITIATIONS_PER_SECOND: Final = 50
"""A peer's initiations beyond this rate are dropped, as each costs us an X25519 multiplication or four."""

LOAD_THRESHOLD: Final = 256
"""Handshake messages in a second above which cookies are demanded: about a tenth of one core spent on handshakes."""
LOAD_HOLD_TIME: Final = 1.0
"""The device stays under load this long after the threshold was last exceeded, in seconds."""

RATE_LIMIT_PER_SECOND: Final = 20
RATE_LIMIT_BURST: Final = 5
RATE_LIMIT_SOURCES: Final = 8192
"""Handshake messages of one source address while under load (as in the Linux implementation), and sources remembered:
the table then takes about 1 MiB."""

REPLAY_BLOCK_BITS: Final = 64
REPLAY_BLOCKS: Final = 128
REPLAY_WINDOW: Final = (REPLAY_BLOCKS - 1) * REPLAY_BLOCK_BITS
"""RFC 6479: one block is being filled, the others are the window: 8128 counters."""

ROUTE_CACHE_SIZE: Final = 4096
"""Addresses whose peer is remembered in front of the longest-prefix search, about 0.5 MiB."""

MAX_PERSISTENT_KEEPALIVE: Final = 65535
"""Seconds; the field of the configuration protocol is 16 bits wide."""
