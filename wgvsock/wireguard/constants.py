"""The protocol's numbers: first those from the WireGuard whitepaper, then this implementation's own.

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
"""Length of public, private, preshared and symmetric keys, in bytes."""
HASH_SIZE: Final = 32
TAG_SIZE: Final = 16
"""Length of the tag that AEAD appends to a plaintext, in bytes (RFC 8439, section 2.8)."""
MAC_SIZE: Final = 16
COOKIE_SIZE: Final = 16
COOKIE_NONCE_SIZE: Final = 24
TIMESTAMP_SIZE: Final = 12

HANDSHAKE_INITIATION: Final = 1
HANDSHAKE_RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT_DATA: Final = 4
"""Message types: one byte and three reserved zero bytes, read as a little-endian 32-bit integer (section 5.4)."""

HANDSHAKE_INITIATION_SIZE: Final = 148
HANDSHAKE_RESPONSE_SIZE: Final = 92
COOKIE_REPLY_SIZE: Final = 64
TRANSPORT_HEADER_SIZE: Final = 16
"""Type, receiver index and counter in front of the encrypted packet, in bytes (section 5.4.6)."""
TRANSPORT_OVERHEAD: Final = TRANSPORT_HEADER_SIZE + TAG_SIZE
"""Bytes that transport data adds to its plaintext. Also the size of a keepalive, the smallest message."""
PADDING_MULTIPLE: Final = 16
"""Plaintext packets are zero-padded to a multiple of this many bytes (section 5.4.6)."""

REKEY_AFTER_MESSAGES: Final = 2**60
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1
REKEY_AFTER_TIME: Final = 120.0
REJECT_AFTER_TIME: Final = 180.0
REKEY_ATTEMPT_TIME: Final = 90.0
REKEY_TIMEOUT: Final = 5.0
KEEPALIVE_TIMEOUT: Final = 10.0
"""Section 6.1. Times are in seconds."""

COOKIE_SECRET_MAX_AGE: Final = 120.0
"""Lifetime of the responder's secret, and so of a cookie (section 5.4.7), in seconds."""

# --- Implementation ------------------------------------------------------------------------------------------------

REKEY_TIMEOUT_JITTER: Final = 1 / 3
"""Seconds. Section 6.1 requires jitter on retries. The Linux implementation uses up to a third of a second."""

COOKIE_SECRET_LATENCY: Final = 5.0
"""The sender stops using a cookie this many seconds before the responder drops it, to allow for messages in flight."""

MAX_STAGED_PACKETS: Final = 128
"""Packets that may wait for a handshake, for each peer: a window of TCP connections, or 8 MiB at 64 KiB each."""

MAX_QUEUED_DATAGRAMS: Final = 1024
MAX_QUEUED_PACKETS: Final = 1024
MAX_QUEUED_EVENTS: Final = 256
"""Bounds of the device's queues. The owner drains them after every call, so they are reached only if it does not."""

TIMERS_AT_ONCE: Final = 64
"""Peers whose timers are handled in one call. Each may cost an initiation of about 250 µs, and the resulting datagrams
have to fit into `MAX_QUEUED_DATAGRAMS`."""

INITIATIONS_PER_SECOND: Final = 50
"""A peer's initiations beyond this rate are dropped, because each costs us one to four X25519 multiplications."""

LOAD_THRESHOLD: Final = 256
"""Handshake messages per second above which cookies are required. They take about a tenth of one core."""
LOAD_HOLD_TIME: Final = 1.0
"""Seconds that the device stays under load after the threshold was last exceeded."""

RATE_LIMIT_PER_SECOND: Final = 20
RATE_LIMIT_BURST: Final = 5
RATE_LIMIT_SOURCES: Final = 8192
"""Handshake messages of one source while under load (as in the Linux implementation), and number of sources to
remember: a full table takes about 1 MiB."""

STRANGER_PER_SECOND: Final = 1
STRANGER_BURST: Final = 1
"""The same for a stream whose peer has not yet proved itself. A peer's first valid initiation is its proof."""

STRANGERS_PER_SECOND: Final = 1000
STRANGERS_BURST: Final = 100
"""The same for all such streams together. An initiation costs one X25519 multiplication before an unknown sender is
detected, which comes to about a tenth of one core. Peers that have proved themselves do not share this budget."""

REPLAY_BLOCK_BITS: Final = 64
REPLAY_BLOCKS: Final = 128
REPLAY_WINDOW: Final = (REPLAY_BLOCKS - 1) * REPLAY_BLOCK_BITS
"""RFC 6479: one block is being filled, and the others are the window of 8128 counters."""

ROUTE_CACHE_SIZE: Final = 4096
"""Addresses in the cache in front of the longest-prefix search, about 0.5 MiB."""

MAX_PERSISTENT_KEEPALIVE: Final = 65535
"""Seconds. The field of the configuration protocol has 16 bits."""
