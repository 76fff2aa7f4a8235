from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import reference
from tests.vectors.generate import FOLDER
from wgvsock.testing import SeededRandom
from wgvsock.wireguard import primitives

PUBLISHED: dict[str, Any] = json.loads((FOLDER / "published.json").read_text())
KDF: list[dict[str, Any]] = json.loads((FOLDER / "kdf.json").read_text())["kdf"]
KEY = bytes(range(32))
NONCE = bytes(range(24))


def vectors(name: str) -> list[Any]:
    return [
        pytest.param(
            {field: bytes.fromhex(value) for field, value in vector.items() if field != "source"}, id=vector["source"]
        )
        for vector in PUBLISHED[name]
    ]


@pytest.mark.parametrize("vector", vectors("blake2s"))
def test_hash(vector: dict[str, bytes]) -> None:
    assert primitives.hash_(vector["input"]) == vector["output"]
    assert primitives.hash_(*(bytes([byte]) for byte in vector["input"])) == vector["output"]


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=32))
def test_mac_is_keyed_blake2s_of_16_bytes(data: bytes, key: bytes) -> None:
    assert primitives.mac(key, data) == primitives.mac(key, data[:3], data[3:])
    assert primitives.mac(key, data) == reference.blake2s(data, key=key, size=16)


@pytest.mark.parametrize("vector", KDF, ids=lambda vector: str(len(vector["input"]) // 2))
def test_hmac_and_kdf(vector: dict[str, Any]) -> None:
    key, data = bytes.fromhex(vector["key"]), bytes.fromhex(vector["input"])
    first, second, third = (bytes.fromhex(output) for output in vector["outputs"])
    assert primitives.hmac(key, data).hex() == vector["hmac"]
    assert primitives.kdf1(key, data) == first
    assert primitives.kdf2(bytearray(key), data) == (first, second)
    assert primitives.kdf3(key, bytearray(data)) == (first, second, third)


@pytest.mark.parametrize("vector", vectors("x25519"))
def test_dh(vector: dict[str, bytes]) -> None:
    private = X25519PrivateKey.from_private_bytes(vector["scalar"])
    assert primitives.dh(private, vector["u"]) == vector["output"]


def test_public_key() -> None:
    alice = next(vector for vector in PUBLISHED["x25519"] if vector["source"].endswith("Alice's public key"))
    assert primitives.public_key(bytes.fromhex(alice["scalar"])).hex() == alice["output"]


@pytest.mark.parametrize("point", PUBLISHED["low_order_points"]["u"])
def test_an_all_zero_shared_secret_is_refused(point: str) -> None:
    private = X25519PrivateKey.from_private_bytes(KEY)
    with pytest.raises(primitives.WeakKeyError):
        primitives.dh(private, bytes.fromhex(point))


def test_dh_generate_takes_its_entropy_from_the_caller() -> None:
    private, public = primitives.dh_generate(SeededRandom("x"))
    assert public == primitives.public_key(SeededRandom("x")(32))
    assert private.public_key().public_bytes_raw() == public


def test_generated_private_keys_are_clamped() -> None:
    for seed in range(20):
        key = primitives.generate_private_key(SeededRandom(str(seed)))
        assert len(key) == 32
        assert key[0] & 0b111 == 0
        assert key[31] >> 6 == 0b01
        # The same key as before clamping: wg genkey prints the clamped form.
        assert primitives.public_key(key) == primitives.public_key(SeededRandom(str(seed))(32))


@pytest.mark.parametrize("vector", vectors("chacha20_poly1305"))
def test_aead(vector: dict[str, bytes]) -> None:
    counter = int.from_bytes(vector["nonce"][4:], "little")
    data = vector["associated_data"]
    assert primitives.aead(vector["key"], counter, vector["plaintext"], data) == vector["output"]
    assert primitives.aead_open(vector["key"], counter, vector["output"], data) == vector["plaintext"]


@pytest.mark.parametrize("vector", vectors("hchacha20"))
def test_hchacha20(vector: dict[str, bytes]) -> None:
    assert primitives.hchacha20(vector["key"], vector["nonce"]) == vector["output"]


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_hchacha20_agrees_with_the_second_implementation(key: bytes, nonce: bytes) -> None:
    assert primitives.hchacha20(key, nonce) == reference.hchacha20(key, nonce)


@pytest.mark.parametrize("vector", vectors("xchacha20_poly1305"))
def test_xaead(vector: dict[str, bytes]) -> None:
    key, nonce, data = vector["key"], vector["nonce"], vector["associated_data"]
    assert primitives.xaead(key, nonce, vector["plaintext"], data) == vector["output"]
    assert primitives.xaead_open(key, nonce, vector["output"], data) == vector["plaintext"]


def flipped(sealed: bytes, data: st.DataObject) -> bytes:
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    return bytes(byte ^ (1 << bit % 8 if position == bit // 8 else 0) for position, byte in enumerate(sealed))


@given(st.binary(max_size=64), st.binary(max_size=32), st.integers(0, 2**64 - 1), st.data())
def test_a_changed_bit_does_not_open(plaintext: bytes, auth: bytes, counter: int, data: st.DataObject) -> None:
    sealed = flipped(primitives.aead(KEY, counter, plaintext, auth), data)
    with pytest.raises(InvalidTag):
        primitives.aead_open(KEY, counter, sealed, auth)
    sealed = flipped(primitives.xaead(KEY, NONCE, plaintext, auth), data)
    with pytest.raises(InvalidTag):
        primitives.xaead_open(KEY, NONCE, sealed, auth)


def test_equal() -> None:
    assert primitives.equal(b"abc", memoryview(b"abc"))
    assert not primitives.equal(b"abc", b"abx")
    assert not primitives.equal(b"abc", b"abcd")


def test_wipe_overwrites_in_place() -> None:
    secret = bytearray(b"secret")
    view = memoryview(secret)
    primitives.wipe(secret)
    assert view == bytes(6)


def test_cipher_objects_copy_their_key() -> None:
    # What Keypair relies on when it wipes the keys that it was given.
    key = bytearray(KEY)
    cipher = ChaCha20Poly1305(key)
    expected = cipher.encrypt(bytes(12), b"x", None)
    primitives.wipe(key)
    assert cipher.encrypt(bytes(12), b"x", None) == expected
