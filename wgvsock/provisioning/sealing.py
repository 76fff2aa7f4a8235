"""The two keys that seal an exchange from REQUEST on: ChaCha20-Poly1305 (RFC 8439), one key for each direction.

HKDF-SHA256 (RFC 5869) derives both from the shared secret of the two ephemeral keys, salted with `binding_hash`. So
anyone who changes HELLO or the relay's ephemeral key in transit changes the keys. The associated data binds each
message to the earlier ones: REQUEST to `binding_hash`, all later ones to the transcript T.

A passive listener sees only sizes and times. But HELLO is not signed, so an active attacker can agree on keys with the
relay in the enclave's place and read the request. The attestation covers T, so the relay detects this before it uses
the enclave.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning.errors import BadFrameError

TAG_BYTES: Final = 16
"""Bytes that sealing adds to a message (RFC 8439, section 2.8)."""

_KEY_BYTES: Final = 32
_TO_ENCLAVE_INFO: Final = b"wgvsock/1 prov to enclave"
_TO_RELAY_INFO: Final = b"wgvsock/1 prov to relay"


class SealingKey:
    """One direction's key, and the number of its next message.

    As in WireGuard, the nonce is 4 zero bytes and that number, little-endian. A key is used for one exchange, so no
    number repeats under it.

    Args:
        key: 32 secret bytes.
    """

    __slots__ = ("_aead", "_counter")

    def __init__(self, key: bytes) -> None:
        self._aead: ChaCha20Poly1305 | None = ChaCha20Poly1305(key)
        self._counter = 0

    def seal(self, message: bytes, associated_data: bytes) -> bytes:
        """Encrypt the next message. The result is 16 bytes longer."""
        return self._key().encrypt(self._nonce(), message, associated_data)

    def open(self, sealed: bytes, associated_data: bytes) -> bytes:
        """Decrypt the next message. The result is 16 bytes shorter.

        Raises:
            BadFrameError: It was sealed with another key, number or associated data, or was changed.
        """
        try:
            return self._key().decrypt(self._nonce(), sealed, associated_data)
        except InvalidTag:
            raise BadFrameError("a message cannot be opened with the keys of this exchange") from None

    def forget(self) -> None:
        """Drop the key."""
        self._aead = None

    def _key(self) -> ChaCha20Poly1305:
        if self._aead is None:
            raise LocalProtocolError("a sealing key was used after its exchange ended")
        return self._aead

    def _nonce(self) -> bytes:
        self._counter += 1
        return struct.pack("<4xQ", self._counter - 1)


class SealingKeys:
    """The keys of both directions.

    Args:
        secret: The X25519 shared secret of the two ephemeral keys, 32 bytes.
        binding: `wgvsock.provisioning.transcript.binding_hash` of the exchange, 48 bytes.
    """

    __slots__ = ("to_enclave", "to_relay")

    def __init__(self, secret: bytes, binding: bytes) -> None:
        self.to_enclave = SealingKey(_derive(secret, binding, _TO_ENCLAVE_INFO))
        self.to_relay = SealingKey(_derive(secret, binding, _TO_RELAY_INFO))

    def forget(self) -> None:
        """Drop both keys, so that no recording of this exchange can be opened later."""
        self.to_enclave.forget()
        self.to_relay.forget()


def _derive(secret: bytes, binding: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=binding, info=info).derive(secret)
