"""X25519, and the points whose shared secret with every key is zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wgvsock.x25519 import P, WeakKeyError, exchange, has_small_order

PUBLISHED = json.loads((Path(__file__).parents[1] / "vectors/published.json").read_text())
SMALL_ORDER: list[str] = PUBLISHED["low_order_points"]["u"]
ALICE, BOB = (X25519PrivateKey.from_private_bytes(bytes([byte]) * 32) for byte in b"ab")


def test_both_sides_have_one_secret() -> None:
    theirs = exchange(BOB, ALICE.public_key().public_bytes_raw())
    assert exchange(ALICE, BOB.public_key().public_bytes_raw()) == theirs != bytes(32)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_secret_that_everybody_shares_is_refused(point: str) -> None:
    with pytest.raises(WeakKeyError):
        exchange(ALICE, bytes.fromhex(point))
    assert has_small_order(bytes.fromhex(point))


@pytest.mark.parametrize("u", [0, 1, P - 1, P, P + 1, P + 2**255], ids=hex)
def test_small_orders_in_every_encoding(u: int) -> None:
    """0, 1 and -1 have order 4 at most. Bit 255 is ignored and the rest counts modulo p (RFC 7748, section 5)."""
    assert has_small_order((u % 2**256).to_bytes(32, "little"))


def test_the_base_point_and_a_true_key_are_none() -> None:
    assert not has_small_order((9).to_bytes(32, "little"))
    assert not has_small_order(ALICE.public_key().public_bytes_raw())


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_no_weak_one(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        has_small_order(bytes(size))
    assert not isinstance(caught.value, WeakKeyError)
