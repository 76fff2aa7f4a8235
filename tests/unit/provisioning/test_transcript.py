"""The formulas of docs/protocol/provisioning.md against a second, naive implementation of each."""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.attestation.binding import encode_x25519_spki, extended_pcr, wireguard_key_commitment
from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning.errors import BadFieldError
from wgvsock.provisioning.messages import Hello, Request, Result
from wgvsock.provisioning.pin import sign_request
from wgvsock.provisioning.transcript import TAG, Ephemeral, binding_hash, transcript_hash, user_data
from wgvsock.testing.provisioning import TUNNEL_CONFIG, RelayHalf

ROOT = Path(__file__).resolve().parents[3]
TRANSCRIPT = hashlib.sha384(b"any").digest()


def _x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5, word by word."""
    prime, a24 = 2**255 - 19, 121665
    k = int.from_bytes(scalar, "little") & ~7 & ~(128 << 8 * 31) | 64 << 8 * 31
    x1 = int.from_bytes(point, "little") & (1 << 255) - 1
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, e = d * a, c * b, a * a - b * b
        x3, z3 = (da + cb) ** 2 % prime, x1 * (da - cb) ** 2 % prime
        x2, z2 = a * a * b * b % prime, e * (a * a + a24 * e) % prime
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, prime - 2, prime) % prime).to_bytes(32, "little")


def _hkdf_sha256(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output."""
    pseudorandom_key = hmac.digest(salt, secret, "sha256")
    return hmac.digest(pseudorandom_key, info + b"\1", "sha256")


def test_the_tag_has_sixteen_bytes() -> None:
    assert len(TAG) == 16
    assert TAG.rstrip(b"\0") == b"wgvsock/prov/1"


@given(hello=st.binary(max_size=300), request=st.binary(max_size=300))
def test_the_transcript_is_the_hash_of_both_messages_with_their_lengths(hello: bytes, request: bytes) -> None:
    layout = TAG + struct.pack(">I", len(hello)) + hello + struct.pack(">I", len(request)) + request
    assert transcript_hash(hello, request) == hashlib.sha384(layout).digest()


def _documented_example() -> dict[str, bytes]:
    """The values of the example in the protocol's page, by name."""
    values: dict[str, str] = {}
    for line in (ROOT / "docs/protocol/provisioning.md").read_text().splitlines():
        if head := re.fullmatch(r"(\w+) \(\d+ bytes\)", line):
            values[name := head[1]] = ""
        elif values and re.fullmatch(r"  [0-9a-f]+", line):
            values[name] += line.strip()
    return {name: bytes.fromhex(value) for name, value in values.items()}


def test_the_example_in_the_documentation() -> None:
    def public(private: bytes) -> bytes:
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

    enclave, relay = Ephemeral(b"\x11" * 32), Ephemeral(b"\x22" * 32)
    offer = ("framing/native", "profile/gso", "profile/plain")
    hello = Hello(bytes(range(32)), enclave.public, offer).encode()
    request = Request(
        nonce=bytes(range(32, 64)),
        relay_public_key=public(b"\x33" * 32),
        epoch_ms=1_800_000_000_000,
        config=replace(TUNNEL_CONFIG, capabilities=("framing/native", "profile/gso")).to_fields(),
        incarnation=1_799_999_000_000,
    )
    half = RelayHalf(hello, b"\x22" * 32)
    signed = sign_request(b"\x44" * 32, half.binding, request).encode()
    message = half.request(signed)
    transcript = transcript_hash(hello, message)
    spki = encode_x25519_spki(public(b"\x55" * 32))
    commitment = wireguard_key_commitment(spki)
    assert _documented_example() == {
        "M0": hello,
        "H": half.binding,
        "map": signed,
        "M1": message,
        "M3": half.result(Result(0).encode()),
        "T": transcript,
        "user_data": user_data(transcript),
        "PSK": relay.preshared_key(enclave.public, transcript),
        "public_key": spki,
        "commitment": commitment,
        "PCR16": extended_pcr(commitment),
    }


def test_what_the_keys_are_bound_to_is_hello_and_the_relay_s_ephemeral() -> None:
    layout = TAG + struct.pack(">I", 5) + b"hello" + struct.pack(">I", 32) + b"e" * 32
    assert binding_hash(b"hello", b"e" * 32) == hashlib.sha384(layout).digest()


def test_a_byte_that_moves_from_one_message_to_the_other_changes_the_transcript() -> None:
    assert transcript_hash(b"ab", b"c") != transcript_hash(b"a", b"bc")


def test_user_data_is_tag_and_transcript() -> None:
    assert user_data(TRANSCRIPT) == TAG + TRANSCRIPT
    assert len(user_data(TRANSCRIPT)) == 64


@given(enclave_seed=st.binary(min_size=32, max_size=32), relay_seed=st.binary(min_size=32, max_size=32))
def test_both_sides_derive_the_specified_preshared_key(enclave_seed: bytes, relay_seed: bytes) -> None:
    enclave, relay = Ephemeral(enclave_seed), Ephemeral(relay_seed)
    base_point = (9).to_bytes(32, "little")
    assert enclave.public == _x25519(enclave_seed, base_point)
    shared = _x25519(relay_seed, enclave.public)
    expected = _hkdf_sha256(shared, TRANSCRIPT, b"wgvsock/1 wg-psk")
    assert enclave.preshared_key(relay.public, TRANSCRIPT) == expected
    assert relay.preshared_key(enclave.public, TRANSCRIPT) == expected


def test_another_transcript_is_another_preshared_key() -> None:
    enclave, relay = Ephemeral(b"e" * 32), Ephemeral(b"r" * 32)
    other = hashlib.sha384(b"other").digest()
    assert enclave.preshared_key(relay.public, TRANSCRIPT) != enclave.preshared_key(relay.public, other)


SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),  # -1
    (2**255 - 19).to_bytes(32, "little"),  # 0, not canonical
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),  # order 8
]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_a_point_of_small_order_is_refused(point: bytes) -> None:
    ephemeral = Ephemeral(b"e" * 32)
    with pytest.raises(BadFieldError):
        ephemeral.preshared_key(point, TRANSCRIPT)
    with pytest.raises(BadFieldError):
        ephemeral.sealing_keys(point, TRANSCRIPT)
    with pytest.raises(BadFieldError):
        ephemeral.check_public_key(point)


def test_a_real_public_key_passes() -> None:
    ephemeral = Ephemeral(b"e" * 32)
    ephemeral.check_public_key(Ephemeral(b"r" * 32).public)


def test_a_forgotten_key_is_gone() -> None:
    ephemeral = Ephemeral(b"e" * 32)
    ephemeral.forget()
    with pytest.raises(LocalProtocolError):
        ephemeral.preshared_key(Ephemeral(b"r" * 32).public, TRANSCRIPT)
