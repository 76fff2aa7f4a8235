"""X25519 with the one check that every use of it needs (RFC 7748, section 6.1).

WireGuard's handshake, the provisioning exchange, the attested key and the relay's pin all handle keys that somebody
else chose. If such a key is a point of small order, the shared secret is zero whatever the private key is.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

KEY_SIZE: Final = 32
"""Length of a private key, a public key and a shared secret, in bytes."""

P: Final = 2**255 - 19
"""The field's prime (RFC 7748, section 4.1)."""

BELOW_TOP_BIT: Final = 2**255 - 1
"""Mask of a coordinate: X25519 ignores bit 255 (section 5), and Ed25519 keeps a sign in it (RFC 8032, 5.1.2)."""

_ANY_SCALAR: Final = X25519PrivateKey.from_private_bytes(bytes(KEY_SIZE))  # clamping makes it a multiple of 8


class WeakKeyError(ValueError):
    """The shared secret is all zeros: the public key is a point of small order."""


def exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """Compute the shared secret.

    Args:
        private: Our private key.
        public: The peer's public key, 32 bytes.

    Returns:
        The shared secret, 32 bytes.

    Raises:
        WeakKeyError: The shared secret is all zeros.
        ValueError: The public key does not have 32 bytes.
    """
    key = X25519PublicKey.from_public_bytes(public)
    try:
        return private.exchange(key)
    except ValueError:
        raise WeakKeyError("the shared secret is all zeros") from None


def has_small_order(public: bytes) -> bool:
    """Whether this public key gives a shared secret of zeros with every private key.

    Args:
        public: The public key, 32 bytes.

    Raises:
        ValueError: The public key does not have 32 bytes.
    """
    try:
        exchange(_ANY_SCALAR, public)
    except WeakKeyError:
        return True
    return False
