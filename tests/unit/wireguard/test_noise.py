from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors.generate import FOLDER
from wgvsock.testing import SeededRandom
from wgvsock.wireguard.events import DropReason
from wgvsock.wireguard.messages import HandshakeInitiation, HandshakeResponse, parse_message
from wgvsock.wireguard.noise import (
    Handshake,
    HandshakeRejectedError,
    Identity,
    TransportKeys,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
    open_initiation,
)
from wgvsock.wireguard.tai64n import from_tai64n

HANDSHAKES: list[dict[str, Any]] = json.loads((FOLDER / "handshake.json").read_text())["handshakes"]
LOW_ORDER: list[str] = json.loads((FOLDER / "published.json").read_text())["low_order_points"]["u"]
T0 = 1_800_000_000 * 10**9


def handshake_with(identity: Identity, remote: bytes, preshared_key: bytes | None = None) -> Handshake:
    handshake = Handshake(remote)
    handshake.set_identity(identity)
    if preshared_key is not None:
        handshake.preshared_key[:] = preshared_key
    return handshake


class Sides:
    """Both sides of a handshake and what they know of each other."""

    def __init__(self) -> None:
        self.random = SeededRandom("sides")
        self.alice, self.bob = Identity(self.random(32)), Identity(self.random(32))
        self.at_alice = handshake_with(self.alice, self.bob.public)
        self.at_bob = handshake_with(self.bob, self.alice.public)

    def initiation(self, *, index: int = 7, time: int = T0, now: float = 0.0) -> HandshakeInitiation:
        return create_initiation(self.alice, self.at_alice, index, random=self.random, unix_time=time, now=now)

    def respond(self, message: HandshakeInitiation, *, now: float = 0.0) -> tuple[HandshakeResponse, TransportKeys]:
        consumed = consume_initiation(open_initiation(self.bob, message), self.at_bob, now)
        return create_response(consumed, self.at_bob, 9, self.random)

    def respond_reason(self, message: HandshakeInitiation, *, now: float = 0.0) -> DropReason:
        with pytest.raises(HandshakeRejectedError) as rejected:
            self.respond(message, now=now)
        return rejected.value.reason

    def response_reason(self, message: HandshakeResponse) -> DropReason:
        with pytest.raises(HandshakeRejectedError) as rejected:
            consume_response(self.alice, self.at_alice, message)
        return rejected.value.reason


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda vector: vector["name"])
def test_a_whole_handshake_with_fixed_keys(vector: dict[str, Any]) -> None:
    field = {name: bytes.fromhex(value) for name, value in vector.items() if isinstance(value, str) and name != "name"}
    initiator, responder = Identity(field["initiator_static"]), Identity(field["responder_static"])
    assert (initiator.public, responder.public) == (field["initiator_public"], field["responder_public"])
    at_initiator = handshake_with(initiator, responder.public, field["preshared_key"])
    at_responder = handshake_with(responder, initiator.public, field["preshared_key"])

    initiation = create_initiation(
        initiator,
        at_initiator,
        vector["initiator_index"],
        random=lambda _: field["initiator_ephemeral"],
        unix_time=from_tai64n(field["timestamp"]),
        now=0.0,
    )
    assert initiation.pack()[:-32] == field["initiation"][:-32]

    opened = open_initiation(responder, initiation)
    assert opened.remote_static == initiator.public
    consumed = consume_initiation(opened, at_responder, 0.0)
    response, responder_keys = create_response(
        consumed, at_responder, vector["responder_index"], lambda _: field["responder_ephemeral"]
    )
    assert response.pack()[:-32] == field["response"][:-32]

    initiator_keys, pending = consume_response(initiator, at_initiator, response)
    assert initiator_keys.sending == responder_keys.receiving == field["initiator_to_responder_key"]
    assert initiator_keys.receiving == responder_keys.sending == field["responder_to_initiator_key"]
    assert pending.local_index == vector["initiator_index"]


def test_a_response_ends_the_pending_initiation_and_wipes_it() -> None:
    sides = Sides()
    response, _ = sides.respond(sides.initiation())
    _, pending = consume_response(sides.alice, sides.at_alice, response)
    assert sides.at_alice.pending is None
    assert pending.chaining_key == bytes(32)
    assert not hasattr(pending, "ephemeral")
    assert sides.response_reason(response) is DropReason.UNEXPECTED_RESPONSE


def test_a_new_initiation_replaces_and_wipes_the_pending_one() -> None:
    sides = Sides()
    sides.initiation(index=1)
    first = sides.at_alice.pending
    sides.initiation(index=2)
    assert first is not None
    assert first.chaining_key == bytes(32)
    assert sides.at_alice.pending is not None
    assert sides.at_alice.pending.local_index == 2


def test_a_response_to_another_initiation_is_unexpected() -> None:
    sides = Sides()
    response, _ = sides.respond(sides.initiation(index=1))
    sides.initiation(index=2, time=T0 + 10**9)
    assert sides.response_reason(response) is DropReason.UNEXPECTED_RESPONSE
    assert sides.at_alice.pending is not None


@pytest.mark.parametrize("field", ["unencrypted_ephemeral", "encrypted_static", "encrypted_timestamp"])
def test_a_forged_initiation_is_ignored(field: str) -> None:
    sides = Sides()
    message = sides.initiation()
    value = getattr(message, field)
    forged = replace(message, **{field: bytes([value[0] ^ 1]) + value[1:]})
    assert sides.respond_reason(forged) is DropReason.INVALID_HANDSHAKE
    sides.respond(message)


@pytest.mark.parametrize("field", ["unencrypted_ephemeral", "encrypted_nothing"])
def test_a_forged_response_is_ignored_and_the_true_one_still_counts(field: str) -> None:
    sides = Sides()
    response, keys = sides.respond(sides.initiation())
    value = getattr(response, field)
    assert sides.response_reason(replace(response, **{field: bytes([value[0] ^ 1]) + value[1:]})) is (
        DropReason.INVALID_HANDSHAKE
    )
    mine, _ = consume_response(sides.alice, sides.at_alice, response)
    assert mine.sending == keys.receiving


@pytest.mark.parametrize("point", LOW_ORDER)
def test_weak_ephemeral_keys_are_ignored(point: str) -> None:
    sides = Sides()
    message = sides.initiation()
    weak = replace(message, unencrypted_ephemeral=bytes.fromhex(point))
    assert sides.respond_reason(weak) is DropReason.INVALID_HANDSHAKE
    response, _ = sides.respond(message)
    weak_response = replace(response, unencrypted_ephemeral=bytes.fromhex(point))
    assert sides.response_reason(weak_response) is DropReason.INVALID_HANDSHAKE


@pytest.mark.parametrize("point", LOW_ORDER)
def test_nobody_shares_a_secret_with_a_weak_static_key(point: str) -> None:
    handshake = handshake_with(Identity(bytes(range(32))), bytes.fromhex(point))
    assert handshake.static_static == b""
    assert handshake.static_static == b"", "it is not computed again and again"


def test_an_initiation_that_everybody_can_seal_is_refused() -> None:
    """The static key is of low order, so that the secret that should prove it is known: zero."""
    sides = Sides()
    at_bob = handshake_with(sides.bob, bytes(32))
    sides.alice.public = bytes(32)
    sides.at_alice._static_static = bytearray(32)
    opened = open_initiation(sides.bob, sides.initiation())
    assert opened.remote_static == bytes(32)
    with pytest.raises(HandshakeRejectedError) as rejected:
        consume_initiation(opened, at_bob, 0.0)
    assert rejected.value.reason is DropReason.INVALID_HANDSHAKE


def test_an_initiation_for_somebody_else_is_ignored() -> None:
    sides = Sides()
    message = sides.initiation()
    with pytest.raises(HandshakeRejectedError):
        open_initiation(Identity(bytes(range(32))), message)


def test_the_timestamp_proves_the_static_key() -> None:
    """Anyone who knows both public keys can write `encrypted_static`, but only the key's owner the timestamp."""
    sides = Sides()
    mallory = Identity(sides.random(32))
    as_alice = handshake_with(mallory, sides.bob.public)
    claimed = Identity(sides.random(32))
    claimed.public = sides.alice.public
    message = create_initiation(claimed, as_alice, 1, random=sides.random, unix_time=T0, now=0.0)
    assert open_initiation(sides.bob, message).remote_static == sides.alice.public
    assert sides.respond_reason(message) is DropReason.INVALID_HANDSHAKE


def test_an_initiation_counts_once() -> None:
    sides = Sides()
    message = sides.initiation()
    sides.respond(message)
    assert sides.respond_reason(message, now=100.0) is DropReason.REPLAYED_INITIATION


def test_an_older_initiation_is_a_replay() -> None:
    sides = Sides()
    old, new = sides.initiation(time=T0), sides.initiation(time=T0 + 10**9)
    sides.respond(new)
    assert sides.respond_reason(old, now=100.0) is DropReason.REPLAYED_INITIATION


def test_a_peer_s_initiations_are_limited_to_50_in_a_second() -> None:
    sides = Sides()
    messages = [sides.initiation(time=T0 + i * 10**8) for i in range(3)]
    sides.respond(messages[0], now=10.0)
    assert sides.respond_reason(messages[1], now=10.019) is DropReason.INITIATION_FLOOD
    sides.respond(messages[2], now=10.021)


def test_different_preshared_keys_do_not_meet() -> None:
    sides = Sides()
    sides.at_bob.preshared_key[:] = b"\1" * 32
    response, _ = sides.respond(sides.initiation())
    assert sides.response_reason(response) is DropReason.INVALID_HANDSHAKE


def test_a_preshared_key_may_change_until_the_response_is_read() -> None:
    sides = Sides()
    message = sides.initiation()
    for handshake in (sides.at_alice, sides.at_bob):
        handshake.preshared_key[:] = b"\1" * 32
    response, keys = sides.respond(message)
    assert consume_response(sides.alice, sides.at_alice, response)[0].sending == keys.receiving


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32), st.text())
def test_any_keys_meet(initiator_index: int, responder_index: int, preshared_key: bytes, seed: str) -> None:
    random = SeededRandom(repr(seed))
    alice, bob = Identity(random(32)), Identity(random(32))
    at_alice = handshake_with(alice, bob.public, preshared_key)
    at_bob = handshake_with(bob, alice.public, preshared_key)
    sent = create_initiation(alice, at_alice, initiator_index, random=random, unix_time=T0, now=0.0).pack()
    initiation = parse_message(sent)
    assert isinstance(initiation, HandshakeInitiation)
    consumed = consume_initiation(open_initiation(bob, initiation), at_bob, 0.0)
    response, bobs_keys = create_response(consumed, at_bob, responder_index, random)
    alices_keys, _ = consume_response(alice, at_alice, response)
    assert (alices_keys.sending, alices_keys.receiving) == (bobs_keys.receiving, bobs_keys.sending)
    assert alices_keys.sending != alices_keys.receiving


def test_wiping() -> None:
    sides = Sides()
    sides.initiation()
    pending, shared = sides.at_alice.pending, sides.at_alice.static_static
    sides.at_alice.preshared_key[:] = b"\1" * 32
    assert any(shared)
    sides.at_alice.wipe()
    assert pending is not None
    assert pending.chaining_key == bytes(32)
    assert not any(sides.at_alice.preshared_key)
    assert not any(shared)
    keys = TransportKeys(bytearray(b"\1" * 32), bytearray(b"\2" * 32))
    keys.wipe()
    assert not any(keys.sending + keys.receiving)


def test_no_representation_shows_a_secret() -> None:
    sides = Sides()
    opened = open_initiation(sides.bob, sides.initiation())
    pending = sides.at_alice.pending
    assert pending is not None
    assert repr(bytes(pending.chaining_key))[2:-1] not in repr(pending)
    assert repr(opened.chaining_key)[2:-1] not in repr(opened)
    assert "sending" not in repr(TransportKeys(bytearray(b"sending secret"), bytearray(b"receiving secret")))


def test_a_new_identity_replaces_the_precomputed_secret() -> None:
    sides = Sides()
    before = sides.at_alice.static_static
    copy = bytes(before)
    sides.at_alice.set_identity(Identity(sides.random(32)))
    assert not any(before)
    assert len(sides.at_alice.static_static) == 32
    assert sides.at_alice.static_static != copy
    sides.at_alice.set_identity(None)
    assert sides.at_alice.static_static == b""
