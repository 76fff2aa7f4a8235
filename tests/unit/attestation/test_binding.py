from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.attestation.binding import (
    check_wireguard_key,
    decode_x25519_spki,
    encode_x25519_spki,
    extended_pcr,
    is_enclave_id,
    is_same_key,
    parse_enclave_id,
    wireguard_key_commitment,
)
from wgvsock.attestation.document import parse_document
from wgvsock.attestation.errors import PublicKeyError
from wgvsock.errors import ConfigurationError


@given(st.binary(min_size=32, max_size=32))
def test_spki_agrees_with_cryptography(key: bytes) -> None:
    spki = encode_x25519_spki(key)
    public_key = X25519PublicKey.from_public_bytes(key)
    assert spki == public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(load_der_public_key(spki), X25519PublicKey)
    assert decode_x25519_spki(spki) == key


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ConfigurationError):
        encode_x25519_spki(bytes(size))


ED25519 = bytes.fromhex("302a300506032b6570032100") + bytes(32)


@pytest.mark.parametrize(
    "spki",
    [
        None,
        b"",
        bytes(32),
        bytes(44),
        ED25519,
        encode_x25519_spki(bytes(32))[:-1],
        encode_x25519_spki(bytes(32)) + b"\x00",
        b"\x31" + encode_x25519_spki(bytes(32))[1:],
    ],
)
def test_anything_else_is_no_x25519_key(spki: bytes | None) -> None:
    with pytest.raises(PublicKeyError):
        decode_x25519_spki(spki)


@pytest.mark.parametrize("spki", [None, b""], ids=["absent", "empty"])
def test_a_document_without_a_key_binds_none(spki: bytes | None) -> None:
    """An empty public_key is well-formed. A genuine document of 2021 contains one."""
    with pytest.raises(PublicKeyError, match="carries no public key"):
        decode_x25519_spki(spki)


def test_a_key_that_is_nobodys_is_refused() -> None:
    with pytest.raises(PublicKeyError, match="small order"):
        check_wireguard_key(bytes(32))
    check_wireguard_key((9).to_bytes(32, "little"))


def test_commitment_and_pcr_as_published() -> None:
    """The example of docs/protocol/attestation.md."""
    spki = encode_x25519_spki(bytes(range(32)))
    commitment = wireguard_key_commitment(spki)
    assert commitment == hashlib.sha384(b"wgvsock/wg-key/1" + spki).digest()
    assert extended_pcr(commitment) == hashlib.sha384(bytes(48) + commitment).digest()
    assert (
        extended_pcr(b"b", extended_pcr(b"a"))
        == hashlib.sha384(hashlib.sha384(bytes(48) + b"a").digest() + b"b").digest()
    )
    assert extended_pcr(commitment).hex().startswith("44cef55d8ab3d388d96a177845a60793")


@pytest.mark.parametrize("number", [0, 9, 18])
def test_a_key_is_the_same_in_every_encoding(number: int) -> None:
    """Bit 255 is ignored, and what exceeds p counts modulo p (RFC 7748, section 5): up to four texts for one key."""
    numbers = [number, number + (1 << 255), number + 2**255 - 19, number + 2**255 - 19 + (1 << 255)]
    keys = [text.to_bytes(32, "little") for text in numbers]
    assert all(is_same_key(one, other) for one in keys for other in keys)
    assert not any(is_same_key(one, (19).to_bytes(32, "little")) for one in keys)


def test_padding_of_an_enclave_id_does_not_matter() -> None:
    padded = parse_enclave_id("i-0123456789abcdef0-enc018aa8b8e2285d13")
    assert (
        padded
        == parse_enclave_id("i-0123456789abcdef0-enc18aa8b8e2285d13")
        == ("i-0123456789abcdef0", 0x18AA8B8E2285D13)
    )
    assert padded != parse_enclave_id("i-0123456789abcdef1-enc18aa8b8e2285d13")
    assert parse_enclave_id("i-12345678-enc0")[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "i-0123456789abcdef0",
        "i-0123456789abcdef0-enc",
        "i-0123456789abcdef0-enc00123456789abcdef",  # 17 digits
        "i-0123456789abcdef0-enc0x1",
        "i-0123456789abcdef0-enc1 ",
        "i-0123456789abcdef0-enc1\n",
        "i-0123456789ABCDEF0-enc1",
        "j-0123456789abcdef0-enc1",
        "i-0123456789abcdef0-enc\u0661",
    ],
)
def test_malformed_enclave_ids(text: str) -> None:
    assert not is_enclave_id(text)
    with pytest.raises(ConfigurationError):
        parse_enclave_id(text)


def test_real_documents_measure_their_instance_in_pcr4(enclave_sample: Any) -> None:
    document = parse_document(enclave_sample.data)
    instance, _slot = parse_enclave_id(document.module_id)
    made_up = enclave_sample.expected["expect_today"] == "chain.root"
    assert (document.pcrs[4] == extended_pcr(instance.encode())) != made_up
