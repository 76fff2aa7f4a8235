"""The second implementation agrees with the published values, and the generated files are its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import reference, reference_provisioning
from tests.vectors.generate import FOLDER, files

PUBLISHED: dict[str, Any] = json.loads((FOLDER / "published.json").read_text())


def by_source(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", PUBLISHED[name], ids=lambda vector: vector["source"])


@by_source("blake2s")
def test_blake2s(vector: dict[str, str]) -> None:
    assert reference.blake2s(bytes.fromhex(vector["input"])).hex() == vector["output"]


def test_blake2s_self_test() -> None:
    test = PUBLISHED["blake2s_self_test"]

    def sequence(size: int, seed: int) -> bytes:
        a, b = 0xDEAD4BAD * seed & 0xFFFFFFFF, 1
        output = bytearray()
        for _ in range(size):
            a, b = b, (a + b) & 0xFFFFFFFF
            output.append(b >> 24)
        return bytes(output)

    digests = b""
    for output_size in test["output_sizes"]:
        for input_size in test["input_sizes"]:
            data, key = sequence(input_size, input_size), sequence(output_size, output_size)
            digests += reference.blake2s(data, size=output_size)
            digests += reference.blake2s(data, key=key, size=output_size)
    assert reference.blake2s(digests).hex() == test["output"]


@by_source("x25519")
def test_x25519(vector: dict[str, str]) -> None:
    output = reference.x25519(bytes.fromhex(vector["scalar"]), bytes.fromhex(vector["u"]))
    assert output.hex() == vector["output"]


@pytest.mark.parametrize("point", PUBLISHED["low_order_points"]["u"])
def test_low_order_points_give_zero(point: str) -> None:
    assert reference.x25519(b"\x77" * 32, bytes.fromhex(point)) == bytes(32)


@by_source("chacha20_poly1305")
def test_chacha20_poly1305(vector: dict[str, str]) -> None:
    key, nonce, plaintext, data = (
        bytes.fromhex(vector[field]) for field in ("key", "nonce", "plaintext", "associated_data")
    )
    assert reference.chacha20_poly1305(key, nonce, plaintext, data).hex() == vector["output"]


@by_source("hchacha20")
def test_hchacha20(vector: dict[str, str]) -> None:
    output = reference.hchacha20(bytes.fromhex(vector["key"]), bytes.fromhex(vector["nonce"]))
    assert output.hex() == vector["output"]


@by_source("xchacha20_poly1305")
def test_xchacha20_poly1305(vector: dict[str, str]) -> None:
    key, nonce, plaintext, data = (
        bytes.fromhex(vector[field]) for field in ("key", "nonce", "plaintext", "associated_data")
    )
    assert reference.xchacha20_poly1305(key, nonce, plaintext, data).hex() == vector["output"]


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (
            reference_provisioning.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            reference_provisioning.sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
    ],
)
def test_sha2(function: Callable[[bytes], bytes], digest: str) -> None:
    """FIPS 180-4's own example, from NIST's page of example values."""
    assert function(b"abc").hex() == digest


def test_hkdf_sha256() -> None:
    """RFC 5869, appendix A.1, the first block of output."""
    output = reference_provisioning.hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert output.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == files()[path], "run python -m tests.vectors.generate"
