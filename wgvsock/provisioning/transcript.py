"""What ties the attestation document, the preshared key and both messages together.

``T = SHA384(TAG || u32 len(M0) || M0 || u32 len(M1) || M1)`` over the exact bytes on the wire. The document's
``user_data`` carries T, so whoever changes one bit of HELLO or REQUEST on the way cannot present a document that the
relay accepts; the preshared key is derived with T, so the WireGuard handshake fails as well.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning.errors import BadFieldError

TAG: Final = b"wgvsock/prov/1\0\0"
"""16 bytes that no other use of these keys and hashes starts with."""

_PRESHARED_KEY_INFO: Final = b"wgvsock/1 wg-psk"
_PRESHARED_KEY_BYTES: Final = 32


def transcript_hash(hello: bytes, request: bytes) -> bytes:
    """T, 48 bytes.

    Args:
        hello: M0 as it was on the wire, without its frame's length.
        request: M1 likewise.
    """
    parts = b"".join(len(message).to_bytes(4, "big") + message for message in (hello, request))
    return hashlib.sha384(TAG + parts).digest()


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

    def preshared_key(self, remote: bytes, transcript: bytes) -> bytes:
        """The WireGuard preshared key, 32 bytes: ``HKDF-SHA256(X25519(eph, eph), salt = T, info)`` (RFC 5869).

        Raises:
            BadFieldError: The remote's ephemeral has small order: the secret would not depend on us
                (RFC 7748, section 6.1).
        """
        secret = self._agree(remote)
        kdf = HKDF(hashes.SHA256(), _PRESHARED_KEY_BYTES, salt=transcript, info=_PRESHARED_KEY_INFO)
        return kdf.derive(secret)

    def forget(self) -> None:
        """Drop the private key: nothing recorded from this exchange can be opened later."""
        self._private = None

    def check_public_key(self, public_key: bytes) -> None:
        """Refuse a WireGuard public key of small order before it becomes a peer's.

        Raises:
            BadFieldError: It is one.
        """
        self._agree(public_key)

    def _agree(self, remote: bytes) -> bytes:
        if self._private is None:
            raise LocalProtocolError("an ephemeral key was used after its exchange")
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(remote))
        except ValueError:
            raise BadFieldError("a public key has small order") from None
