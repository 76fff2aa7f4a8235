"""The two keys of an exchange: how they are derived, and what does not open with them."""

from __future__ import annotations

import hmac
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning.errors import BadFrameError
from wgvsock.provisioning.sealing import TAG_BYTES, SealingKey, SealingKeys
from wgvsock.provisioning.transcript import Ephemeral, binding_hash, transcript_hash

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/provisioning.json").read_text())
SECRET, BINDING = b"s" * 32, b"H" * 48


def _hkdf_sha256(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\1", "sha256")


@pytest.mark.parametrize("vector", VECTORS["exchanges"], ids=lambda vector: vector["name"])
def test_the_vectors(vector: dict[str, str]) -> None:
    value = {name: bytes.fromhex(text) for name, text in vector.items() if name != "name"}
    enclave, relay = Ephemeral(value["enclave_ephemeral_private"]), Ephemeral(value["relay_ephemeral_private"])
    binding = binding_hash(value["m0"], relay.public)
    assert (enclave.public, relay.public, binding) == (
        value["enclave_ephemeral"],
        value["relay_ephemeral"],
        value["binding"],
    )
    keys = relay.sealing_keys(enclave.public, binding)
    message = relay.public + keys.to_enclave.seal(value["request"], binding)
    transcript = transcript_hash(value["m0"], message)
    assert (message, transcript) == (value["m1"], value["transcript"])
    assert keys.to_enclave.seal(value["result"], transcript) == value["m3"]
    assert keys.to_relay.open(value["m2"], transcript) == value["response"]
    assert relay.preshared_key(enclave.public, transcript) == value["preshared_key"]

    keys = enclave.sealing_keys(relay.public, binding)
    assert keys.to_enclave.open(value["m1"][32:], binding) == value["request"]
    assert keys.to_relay.seal(value["response"], transcript) == value["m2"]
    assert keys.to_enclave.open(value["m3"], transcript) == value["result"]


def test_each_direction_has_a_key_of_its_own() -> None:
    keys = SealingKeys(SECRET, BINDING)
    for key, info in ((keys.to_enclave, b"wgvsock/1 prov to enclave"), (keys.to_relay, b"wgvsock/1 prov to relay")):
        expected = ChaCha20Poly1305(_hkdf_sha256(SECRET, BINDING, info))
        for number in range(3):
            assert key.seal(b"message", b"data") == expected.encrypt(struct.pack("<4xQ", number), b"message", b"data")


def test_a_sealed_message_is_longer_by_its_tag() -> None:
    assert len(SealingKey(SECRET).seal(b"message", b"")) == len(b"message") + TAG_BYTES


@pytest.mark.parametrize(
    ("sealed", "data"),
    [
        (SealingKey(SECRET).seal(b"message", b"other"), b"data"),
        (SealingKey(b"o" * 32).seal(b"message", b"data"), b"data"),
        (SealingKey(SECRET).seal(b"message", b"data")[:-1], b"data"),
        (b"", b"data"),
        (b"\0" * 400, b"data"),
    ],
    ids=["other data", "other key", "cut", "nothing", "zeros"],
)
def test_what_does_not_open(sealed: bytes, data: bytes) -> None:
    with pytest.raises(BadFrameError):
        SealingKey(SECRET).open(sealed, data)


def test_a_message_opens_in_its_place_only() -> None:
    sealer, opener = SealingKey(SECRET), SealingKey(SECRET)
    first, second = sealer.seal(b"first", b""), sealer.seal(b"second", b"")
    assert opener.open(first, b"") == b"first"
    with pytest.raises(BadFrameError):
        opener.open(first, b"")
    with pytest.raises(BadFrameError):
        SealingKey(SECRET).open(second, b"")


def test_forgotten_keys_are_gone() -> None:
    keys = SealingKeys(SECRET, BINDING)
    keys.forget()
    with pytest.raises(LocalProtocolError):
        keys.to_relay.seal(b"message", b"")
    with pytest.raises(LocalProtocolError):
        keys.to_enclave.open(b"message", b"")
