"""What binds the attestation document, the preshared key and both messages together.

``T = SHA384(TAG || u32 len(M0) || M0 || u32 len(M1) || M1)`` covers the exact bytes on the wire. The document's
``user_data`` carries T, so anyone who changes one bit of HELLO or REQUEST in transit cannot present a document that the
relay accepts. The preshared key is derived with T, so the WireGuard handshake fails as well.

``H`` is the same hash over HELLO and the relay's ephemeral key, which both sides know before REQUEST can be opened. The
keys that seal the exchange and the relay's signature depend on it. M1 is always longer than an ephemeral key, so H and
T never have the same input.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning.errors import BadFieldError
from wgvsock.provisioning.sealing import SealingKeys
from wgvsock.x25519 import WeakKeyError, exchange

TAG: Final = b"wgvsock/prov/1\0\0"
"""16 bytes with which no other use of these keys and hashes starts."""

_PRESHARED_KEY_INFO: Final = b"wgvsock/1 wg-psk"
_PRESHARED_KEY_BYTES: Final = 32


def transcript_hash(hello: bytes, request: bytes) -> bytes:
    """T, 48 bytes.

    Args:
        hello: M0 as on the wire, without the length of its frame.
        request: M1, likewise.
    """
    parts = b"".join(len(message).to_bytes(4, "big") + message for message in (hello, request))
    return hashlib.sha384(TAG + parts).digest()


def binding_hash(hello: bytes, relay_ephemeral: bytes) -> bytes:
    """H, 48 bytes.

    Args:
        hello: M0 as on the wire, without the length of its frame.
        relay_ephemeral: The first 32 bytes of M1.
    """
    return transcript_hash(hello, relay_ephemeral)


def user_data(transcript: bytes) -> bytes:
    """The document's user_data, 64 bytes: ``TAG || T``."""
    return TAG + transcript


class Ephemeral:
    """One side's X25519 key pair for one exchange (RFC 7748).

    Args:
        seed: 32 bytes from the caller's source of entropy.
    """

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        private = X25519PrivateKey.from_private_bytes(seed)
        self._private: X25519PrivateKey | None = private
        self.public = private.public_key().public_bytes_raw()

    def sealing_keys(self, remote: bytes, binding: bytes) -> SealingKeys:
        """The keys that seal the exchange.

        Args:
            remote: The other side's ephemeral key, 32 bytes.
            binding: H, 48 bytes.

        Raises:
            BadFieldError: The remote ephemeral key has small order, as in `preshared_key`.
        """
        return SealingKeys(self._agree(remote), binding)

    def preshared_key(self, remote: bytes, transcript: bytes) -> bytes:
        """The WireGuard preshared key, 32 bytes: ``HKDF-SHA256(X25519(eph, eph), salt = T, info)`` (RFC 5869).

        Args:
            remote: The other side's ephemeral key, 32 bytes.
            transcript: T, 48 bytes.

        Raises:
            BadFieldError: The remote ephemeral key has small order, so that the secret would not depend on our key
                (RFC 7748, section 6.1).
        """
        secret = self._agree(remote)
        kdf = HKDF(hashes.SHA256(), _PRESHARED_KEY_BYTES, salt=transcript, info=_PRESHARED_KEY_INFO)
        return kdf.derive(secret)

    def forget(self) -> None:
        """Drop the private key, so that no recording of this exchange can be opened later."""
        self._private = None

    def check_public_key(self, public_key: bytes) -> None:
        """Refuse a WireGuard public key of small order before it becomes a peer's.

        Args:
            public_key: 32 bytes.

        Raises:
            BadFieldError: It has small order.
        """
        self._agree(public_key)

    def _agree(self, remote: bytes) -> bytes:
        if self._private is None:
            raise LocalProtocolError("an ephemeral key was used after its exchange ended")
        try:
            return exchange(self._private, remote)
        except WeakKeyError:
            raise BadFieldError("a public key has small order") from None
