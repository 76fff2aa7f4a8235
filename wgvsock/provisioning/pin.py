"""The relay's Ed25519 signature over a REQUEST (RFC 8032).

It is made over ``TAG || "relay" || SHA384(M0) || SHA384(M1 without key 8)``. M0 brings the enclave's fresh nonce, so a
signature is good for one connection; M1 without key 8 brings everything the relay says, the signer's own key included.

With a pin measured into the enclave image, only the pin's owner provisions that enclave. Without one, the enclave
adopts the key of the relay that it serves (see `wgvsock.provisioning.responder`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.errors import AuthFailedError
from wgvsock.provisioning.messages import KEY_BYTES, Request
from wgvsock.provisioning.transcript import TAG

SEED_BYTES: Final = 32

_ROLE: Final = b"relay"

_P: Final = 2**255 - 19
_Y_MASK: Final = 2**255 - 1  # the top bit of an encoded point is the sign of x (RFC 8032, section 5.1.2)
_ANY_SCALAR: Final = X25519PrivateKey.from_private_bytes(bytes(32))  # clamping makes it a multiple of 8


def public_key_of(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte signing seed: the relay pin."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def check_pin(pin: bytes) -> None:
    """Refuse a relay pin that pins nothing.

    A key of small order, such as 32 zero bytes left by a template, verifies signatures that anybody can make.

    Raises:
        ConfigurationError: It is one, or does not have 32 bytes.
    """
    if len(pin) != KEY_BYTES or _has_small_order(pin):
        raise ConfigurationError(
            "cannot use the relay pin",
            why="it is no Ed25519 public key of 32 bytes, or one of small order",
            fix="give the public key that wgvsock keys pub prints for the relay's signing key",
        )


def sign_request(seed: bytes, hello: bytes, request: Request) -> Request:
    """The request with its signer's key and signature.

    Args:
        seed: 32 secret bytes.
        hello: M0 as it was on the wire.
        request: M1, unsigned.
    """
    request = replace(request, signer=public_key_of(seed))
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(_signed_bytes(hello, request))
    return replace(request, signature=signature)


def verify_request(signer: bytes, hello: bytes, request: Request) -> None:
    """Check that `signer` signed this request in answer to this HELLO.

    Args:
        signer: The 32-byte public key that has to have signed.
        hello: M0 as this side sent it.
        request: M1 as decoded; a message has one encoding, so that this is over the bytes that arrived.

    Raises:
        AuthFailedError: The request bears another key or no signature, or the signature does not verify.
    """
    if request.signature is None or request.signer != signer:
        raise AuthFailedError("the request is signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(request.signature, _signed_bytes(hello, request))
    except InvalidSignature:
        raise AuthFailedError("the signature does not verify") from None


def _has_small_order(public_key: bytes) -> bool:
    """Whether the point's order divides 8: its Montgomery form times any X25519 scalar is zero (RFC 7748, 4.1)."""
    y = (int.from_bytes(public_key, "little") & _Y_MASK) % _P
    u = (1 + y) * pow(1 - y, -1, _P) % _P if y != 1 else 0
    try:
        _ANY_SCALAR.exchange(X25519PublicKey.from_public_bytes(u.to_bytes(KEY_BYTES, "little")))
    except ValueError:
        return True
    return False


def _signed_bytes(hello: bytes, request: Request) -> bytes:
    unsigned = request.without_signature().encode()
    return TAG + _ROLE + hashlib.sha384(hello).digest() + hashlib.sha384(unsigned).digest()
