"""What binds a document to a WireGuard key and to one enclave: the encodings that both sides compute.

`docs/protocol/attestation.md` has the formulas and an example.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from wgvsock.attestation.document import PCR_SIZE
from wgvsock.attestation.errors import PublicKeyError
from wgvsock.errors import ConfigurationError
from wgvsock.x25519 import BELOW_TOP_BIT, KEY_SIZE, P, has_small_order

_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b656e032100")
"""DER of SubjectPublicKeyInfo with the algorithm id-X25519 up to the 32 key bytes (RFC 8410, section 4)."""

_KEY_COMMITMENT_LABEL: Final = b"wgvsock/wg-key/1"
_ENCLAVE_ID: Final = re.compile(r"(i-[0-9a-f]{8,17})-enc([0-9a-f]{1,16})", re.ASCII)


def encode_x25519_spki(public_key: bytes) -> bytes:
    """The 44-byte SubjectPublicKeyInfo (DER) of a raw 32-byte X25519 public key, as in the document's public_key.

    Raises:
        ConfigurationError: The key does not have 32 bytes.
    """
    if len(public_key) != KEY_SIZE:
        raise ConfigurationError("cannot encode the WireGuard key", why=f"it has {len(public_key)} bytes instead of 32")
    return _SPKI_PREFIX + public_key


def decode_x25519_spki(spki: bytes | None) -> bytes:
    """The raw 32-byte X25519 public key of a document's public_key.

    There is exactly one DER encoding, so the prefix is compared and nothing is parsed.

    Raises:
        PublicKeyError: It is absent, or is not an X25519 SubjectPublicKeyInfo.
    """
    if not spki:  # null, absent, or empty as in genuine documents of 2021
        raise PublicKeyError("the document carries no public key")
    if len(spki) != len(_SPKI_PREFIX) + KEY_SIZE or not spki.startswith(_SPKI_PREFIX):
        raise PublicKeyError("the public key is not an X25519 SubjectPublicKeyInfo")
    return spki[len(_SPKI_PREFIX) :]


def check_wireguard_key(public_key: bytes) -> None:
    """Refuse a WireGuard key whose shared secrets do not depend on any private key.

    Args:
        public_key: 32 bytes.

    Raises:
        PublicKeyError: It has small order.
    """
    if has_small_order(public_key):
        raise PublicKeyError("the public key has small order: its shared secrets are known to everyone")


def is_same_key(one: bytes, other: bytes) -> bool:
    """Whether two X25519 public keys are equal modulo p, without bit 255 (RFC 7748, section 5). 32 bytes each."""
    return _coordinate(one) == _coordinate(other)


def _coordinate(public_key: bytes) -> int:
    return (int.from_bytes(public_key, "little") & BELOW_TOP_BIT) % P


def wireguard_key_commitment(spki: bytes) -> bytes:
    """What the enclave extends its key PCR with: SHA384("wgvsock/wg-key/1" || SPKI), 48 bytes."""
    return hashlib.sha384(_KEY_COMMITMENT_LABEL + spki).digest()


def extended_pcr(data: bytes, previous: bytes = bytes(PCR_SIZE)) -> bytes:
    """A PCR's 48-byte value after ExtendPCR: SHA384(previous || data). A fresh PCR holds 48 zero bytes."""
    return hashlib.sha384(previous + data).digest()


def is_enclave_id(text: str) -> bool:
    """Whether `parse_enclave_id` can read it."""
    return _ENCLAVE_ID.fullmatch(text) is not None


def parse_enclave_id(text: str) -> tuple[str, int]:
    """Split ``i-…-enc…`` into the parent instance and the slot number.

    The document's module_id pads the slot to 16 hexadecimal digits, but nitro-cli prints the EnclaveID without padding.
    So compare the pairs, not the texts.

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
