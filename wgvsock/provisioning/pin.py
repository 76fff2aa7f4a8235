"""The relay's Ed25519 signature over a REQUEST (RFC 8032).

It covers ``TAG || "relay" || H || SHA384(REQUEST's map without key 8)``. H (`binding_hash`) includes both ephemeral
keys and the enclave's fresh nonce, so that a signature is valid for only one connection. The map without key 8 includes
everything that the relay sends, even the signer's own key.

With a pin measured into the enclave image, only the pin's owner can provision that enclave. Without one, the enclave
adopts the key of the relay that it serves (see `wgvsock.provisioning.responder`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.errors import AuthFailedError
from wgvsock.provisioning.messages import KEY_BYTES, Request
from wgvsock.provisioning.transcript import TAG
from wgvsock.x25519 import BELOW_TOP_BIT, P, has_small_order

SEED_BYTES: Final = 32

_ROLE: Final = b"relay"


def public_key_of(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte signing seed, which is the relay pin."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def check_pin(pin: bytes) -> None:
    """Refuse a relay pin that protects nothing.

    With a key of small order, such as 32 zero bytes left by a template, anyone can make valid signatures.

    Raises:
        ConfigurationError: It has small order, or does not have 32 bytes.
    """
    if len(pin) != KEY_BYTES or _is_of_small_order(pin):
        raise ConfigurationError(
            "cannot use the relay pin",
            why="it is not an Ed25519 public key of 32 bytes, or has small order",
            fix="give the public half of the relay's signing key: wgvsock keys pub --signing < FILE",
        )


def sign_request(seed: bytes, binding: bytes, request: Request) -> Request:
    """Add the signer's key and signature to a request.

    Args:
        seed: 32 secret bytes of the Ed25519 key.
        binding: H (48 bytes) of HELLO as received and the relay's ephemeral key.
        request: The unsigned request.

    Returns:
        The signed request.
    """
    request = replace(request, signer=public_key_of(seed))
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(_signed_bytes(binding, request))
    return replace(request, signature=signature)


def verify_request(signer: bytes, binding: bytes, request: Request) -> None:
    """Check that `signer` signed this request in answer to this HELLO, for these ephemeral keys.

    Args:
        signer: The expected public key, 32 bytes.
        binding: H (48 bytes) of HELLO as sent and the relay's ephemeral key.
        request: The decoded request. Its encoding is unique, so the check covers the bytes that arrived.

    Raises:
        AuthFailedError: The request has another key or no signature, or the signature is invalid.
    """
    if request.signature is None or request.signer != signer:
        raise AuthFailedError("the request is not signed with the expected key")
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(request.signature, _signed_bytes(binding, request))
    except InvalidSignature:
        raise AuthFailedError("the signature is invalid") from None


def _is_of_small_order(public_key: bytes) -> bool:
    """Whether the point's order divides 8: its Montgomery form times any X25519 scalar is zero (RFC 7748, 4.1)."""
    y = (int.from_bytes(public_key, "little") & BELOW_TOP_BIT) % P
    u = (1 + y) * pow(1 - y, -1, P) % P if y != 1 else 0
    return has_small_order(u.to_bytes(KEY_BYTES, "little"))


def _signed_bytes(binding: bytes, request: Request) -> bytes:
    unsigned = request.without_signature().encode()
    return TAG + _ROLE + binding + hashlib.sha384(unsigned).digest()
