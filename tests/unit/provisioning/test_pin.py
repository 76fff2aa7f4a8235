from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning.errors import AuthFailedError
from wgvsock.provisioning.messages import Hello, Request
from wgvsock.provisioning.pin import check_pin, public_key_of, sign_request, verify_request
from wgvsock.provisioning.transcript import binding_hash
from wgvsock.testing.provisioning import TUNNEL_CONFIG

# RFC 8032, section 7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")

BINDING = binding_hash(Hello(bytes(32), bytes(range(32)), ("framing/native",)).encode(), b"e" * 32)
REQUEST = Request(
    nonce=b"n" * 32,
    relay_public_key=b"k" * 32,
    epoch_ms=1_800_000_000_000,
    config=TUNNEL_CONFIG.to_fields(),
)


def test_the_public_key_of_a_seed() -> None:
    assert public_key_of(SEED) == PUBLIC_KEY


def test_a_signed_request_verifies() -> None:
    signed = sign_request(SEED, BINDING, REQUEST)
    assert signed.signer == PUBLIC_KEY
    verify_request(PUBLIC_KEY, BINDING, signed)


def test_the_signature_is_over_what_the_specification_says() -> None:
    signed = sign_request(SEED, BINDING, REQUEST)
    fields = cbor2.loads(signed.encode())
    signature = fields.pop(8)
    layout = b"wgvsock/prov/1\0\0relay" + BINDING + hashlib.sha384(cbor2.dumps(fields, canonical=True)).digest()
    Ed25519PublicKey.from_public_bytes(PUBLIC_KEY).verify(signature, layout)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": b"N" * 32},
        {"relay_public_key": b"K" * 32},
        {"epoch_ms": 1_800_000_000_001},
        {"incarnation": 1},
        {"config": replace(TUNNEL_CONFIG, mtu=1420).to_fields()},
        {"signature": bytes(64)},
        {"signer": public_key_of(bytes(32))},
        {"signature": None, "signer": None},
    ],
    ids="+".join,
)
def test_any_change_breaks_the_signature(change: dict[str, Any]) -> None:
    signed = sign_request(SEED, BINDING, REQUEST)
    with pytest.raises(AuthFailedError):
        verify_request(PUBLIC_KEY, BINDING, replace(signed, **change))


def test_a_signature_is_good_for_one_hello() -> None:
    signed = sign_request(SEED, BINDING, REQUEST)
    other = Hello(b"\1" * 32, bytes(range(32)), ("framing/native",)).encode()
    with pytest.raises(AuthFailedError):
        verify_request(PUBLIC_KEY, binding_hash(other, b"e" * 32), signed)


def test_a_signature_is_good_for_one_ephemeral_of_the_relay() -> None:
    signed = sign_request(SEED, BINDING, REQUEST)
    hello = Hello(bytes(32), bytes(range(32)), ("framing/native",)).encode()
    with pytest.raises(AuthFailedError):
        verify_request(PUBLIC_KEY, binding_hash(hello, b"E" * 32), signed)


def test_the_signer_cannot_be_exchanged_for_another_key_that_verifies() -> None:
    signed = sign_request(bytes(32), BINDING, REQUEST)
    with pytest.raises(AuthFailedError, match="not signed with the expected key"):
        verify_request(PUBLIC_KEY, BINDING, signed)


def test_the_real_pin_is_usable() -> None:
    check_pin(PUBLIC_KEY)
    for seed in range(20):
        check_pin(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key().public_bytes_raw())


P = 2**255 - 19
ORDER_EIGHT = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")


@pytest.mark.parametrize(
    "pin",
    [
        b"",
        PUBLIC_KEY[:31],
        bytes(32),  # order 4
        (1).to_bytes(32, "little"),  # the identity
        (P - 1).to_bytes(32, "little"),  # order 2
        P.to_bytes(32, "little"),  # order 4, not canonical
        (P + 1).to_bytes(32, "little"),  # the identity, not canonical
        ORDER_EIGHT,
        ORDER_EIGHT[:31] + bytes((ORDER_EIGHT[31] | 0x80,)),
        (P - int.from_bytes(ORDER_EIGHT, "little")).to_bytes(32, "little"),
    ],
    ids=bytes.hex,
)
def test_a_pin_that_pins_nothing_is_refused(pin: bytes) -> None:
    with pytest.raises(ConfigurationError):
        check_pin(pin)


def test_why_small_order_matters() -> None:
    # Under the identity as public key, one and the same forgery verifies for every message.
    forgery = (1).to_bytes(32, "little") + bytes(32)
    identity = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    identity.verify(forgery, b"anything")
    identity.verify(forgery, b"anything else")
