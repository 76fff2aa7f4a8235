"""What ties a document to a WireGuard key and to one enclave: the encodings that both sides compute alike.

`docs/protocol/attestation.md` has the formulas with an example.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from wgvsock.attestation.document import PCR_SIZE
from wgvsock.attestation.errors import PublicKeyError
from wgvsock.errors import ConfigurationError

X25519_KEY_SIZE: Final = 32

_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b656e032100")
"""DER of SubjectPublicKeyInfo with the algorithm id-X25519 up to the 32 key bytes (RFC 8410, section 4)."""

_ANY_SCALAR: Final = X25519PrivateKey.from_private_bytes(bytes(X25519_KEY_SIZE))  # clamped to a multiple of 8

_KEY_COMMITMENT_LABEL: Final = b"wgvsock/wg-key/1"
_ENCLAVE_ID: Final = re.compile(r"(i-[0-9a-f]{8,17})-enc([0-9a-f]{1,16})", re.ASCII)


def encode_x25519_spki(public_key: bytes) -> bytes:
    """The 44-byte SubjectPublicKeyInfo (DER) of a raw 32-byte X25519 public key; the document's public_key.

    Raises:
        ConfigurationError: The key does not have 32 bytes.
    """
    if len(public_key) != X25519_KEY_SIZE:
        raise ConfigurationError("cannot encode the WireGuard key", why=f"it has {len(public_key)} bytes instead of 32")
    return _SPKI_PREFIX + public_key


def decode_x25519_spki(spki: bytes | None) -> bytes:
    """The raw 32-byte X25519 public key of a document's public_key.

    There is exactly one DER encoding, so the prefix is compared and nothing is parsed.

    Raises:
        PublicKeyError: It is absent, or anything but an X25519 SubjectPublicKeyInfo.
    """
    if spki is None:
        raise PublicKeyError("the document carries no public key")
    if len(spki) != len(_SPKI_PREFIX) + X25519_KEY_SIZE or not spki.startswith(_SPKI_PREFIX):
        raise PublicKeyError("the public key is no X25519 SubjectPublicKeyInfo")
    return spki[len(_SPKI_PREFIX) :]


def has_small_order(public_key: bytes) -> bool:
    """Whether an X25519 key is one of the points whose shared secret with everybody is zero (RFC 7748, section 6.1)."""
    try:
        _ANY_SCALAR.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        return True
    return False


def wireguard_key_commitment(spki: bytes) -> bytes:
    """What the enclave extends its key PCR with: SHA384("wgvsock/wg-key/1" || SPKI), 48 bytes."""
    return hashlib.sha384(_KEY_COMMITMENT_LABEL + spki).digest()


def extended_pcr(data: bytes, previous: bytes = bytes(PCR_SIZE)) -> bytes:
    """A PCR's value after ExtendPCR: SHA384(previous || data); a fresh PCR holds 48 zero bytes."""
    return hashlib.sha384(previous + data).digest()


def parse_enclave_id(text: str) -> tuple[str, int]:
    """Parent instance and slot number of ``i-…-enc…``.

    The document's module_id pads the slot to 16 hexadecimal digits, nitro-cli prints the same EnclaveID without
    padding: compare the pairs, not the texts.

    Raises:
        ConfigurationError: The text has another form.
    """
    match = _ENCLAVE_ID.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            "cannot read the enclave's id",
            why="it does not have the form i-0123456789abcdef0-enc0123456789abcdef",
            fix="take the EnclaveID that nitro-cli run-enclave or describe-enclaves prints",
        )
    return match[1], int(match[2], 16)
