from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vectors.generate import FOLDER
from wgvsock.testing import SeededRandom
from wgvsock.wireguard.cookie import CookieChecker, CookieMaker
from wgvsock.wireguard.messages import CookieReply, parse_message
from wgvsock.wireguard.primitives import public_key
from wgvsock.wireguard.timers import STANDARD_TIMINGS

HANDSHAKES: list[dict[str, Any]] = json.loads((FOLDER / "handshake.json").read_text())["handshakes"]
RESPONDER = public_key(bytes(range(32)))
SOURCE, ELSEWHERE = b"192.0.2.1:51820", b"192.0.2.1:51821"
MESSAGE = bytes(range(116)) + bytes(32)


class Sides:
    """A responder under load and an initiator."""

    def __init__(self) -> None:
        self.checker = CookieChecker(SeededRandom("cookies"), STANDARD_TIMINGS)
        self.checker.set_public_key(RESPONDER)
        self.maker = CookieMaker(RESPONDER, STANDARD_TIMINGS)

    def reply_to(self, message: bytes, *, now: float, source: bytes = SOURCE) -> CookieReply:
        return self.checker.create_reply(message, 7, source, now)

    def give_cookie(self, now: float) -> None:
        assert self.maker.consume_reply(self.reply_to(self.maker.add_macs(MESSAGE, now), now=now), now)


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda vector: vector["name"])
def test_fixed_keys(vector: dict[str, Any]) -> None:
    field = {name: bytes.fromhex(value) for name, value in vector.items() if isinstance(value, str) and name != "name"}
    maker = CookieMaker(field["responder_public"], STANDARD_TIMINGS)
    bare = field["initiation"][:-32] + bytes(32)
    assert maker.add_macs(bare, 0.0) == field["initiation"]

    entropy = iter([field["cookie_nonce"], field["cookie_secret"]])
    checker = CookieChecker(lambda _: next(entropy), STANDARD_TIMINGS)
    checker.set_public_key(field["responder_public"])
    reply = checker.create_reply(field["initiation"], vector["initiator_index"], field["cookie_source"], 0.0)
    assert reply.pack() == field["cookie_reply"]
    assert reply == parse_message(field["cookie_reply"])

    assert maker.consume_reply(reply, 0.0)
    assert maker.add_macs(bare, 1.0) == field["initiation_with_cookie"]
    assert checker.check_mac1(field["initiation_with_cookie"])
    assert checker.check_mac2(field["initiation_with_cookie"], field["cookie_source"], 1.0)


def test_mac1_is_for_one_public_key() -> None:
    sides = Sides()
    message = sides.maker.add_macs(MESSAGE, 0.0)
    assert sides.checker.check_mac1(message)
    assert sides.checker.check_mac1(memoryview(bytearray(message)))
    assert not sides.checker.check_mac1(CookieMaker(public_key(b"\1" * 32), STANDARD_TIMINGS).add_macs(MESSAGE, 0.0))


@pytest.mark.parametrize("position", [0, 50, 115, 116, 131])
def test_mac1_covers_the_message(position: int) -> None:
    sides = Sides()
    message = bytearray(sides.maker.add_macs(MESSAGE, 0.0))
    message[position] ^= 1
    assert not sides.checker.check_mac1(message)


def test_without_a_cookie_mac2_is_zero_and_not_valid() -> None:
    sides = Sides()
    message = sides.maker.add_macs(MESSAGE, 0.0)
    assert message[-16:] == bytes(16)
    assert not sides.checker.check_mac2(message, SOURCE, 0.0)


def test_a_cookie_makes_mac2_valid_from_its_source_alone() -> None:
    sides = Sides()
    sides.give_cookie(0.0)
    message = sides.maker.add_macs(MESSAGE, 1.0)
    assert sides.checker.check_mac2(message, SOURCE, 1.0)
    assert not sides.checker.check_mac2(message, ELSEWHERE, 1.0)
    changed = bytes([message[0] ^ 1]) + message[1:]
    assert not sides.checker.check_mac2(changed, SOURCE, 1.0)


def test_the_secret_changes_every_two_minutes() -> None:
    sides = Sides()
    sides.give_cookie(0.0)
    message = sides.maker.add_macs(MESSAGE, 1.0)
    assert sides.checker.check_mac2(message, SOURCE, 119.9)
    assert not sides.checker.check_mac2(message, SOURCE, 120.0)


def test_the_initiator_forgets_its_cookie_before_the_responder_does() -> None:
    sides = Sides()
    sides.give_cookie(0.0)
    assert sides.maker.add_macs(MESSAGE, 114.9)[-16:] != bytes(16)
    assert sides.maker.add_macs(MESSAGE, 115.0)[-16:] == bytes(16)


def test_a_reply_is_bound_to_the_last_message() -> None:
    sides = Sides()
    first = sides.maker.add_macs(MESSAGE, 0.0)
    reply = sides.reply_to(first, now=0.0)
    sides.maker.add_macs(b"\xff" + MESSAGE[1:], 0.0)
    assert not sides.maker.consume_reply(reply, 0.0)


def test_a_reply_counts_once_and_not_before_anything_was_sent() -> None:
    sides = Sides()
    assert not sides.maker.consume_reply(CookieReply(7, bytes(24), bytes(32)), 0.0)
    reply = sides.reply_to(sides.maker.add_macs(MESSAGE, 0.0), now=0.0)
    assert sides.maker.consume_reply(reply, 0.0)
    assert not sides.maker.consume_reply(reply, 0.0)


def test_a_forged_reply_is_not_taken() -> None:
    sides = Sides()
    reply = sides.reply_to(sides.maker.add_macs(MESSAGE, 0.0), now=0.0)
    forged = CookieReply(reply.receiver_index, reply.nonce, bytes(32))
    assert not sides.maker.consume_reply(forged, 0.0)
    assert sides.maker.consume_reply(reply, 0.0), "the true one still counts"


def test_wipe_forgets_the_cookie() -> None:
    sides = Sides()
    sides.give_cookie(0.0)
    sides.maker.wipe()
    assert sides.maker.add_macs(MESSAGE, 1.0)[-16:] == bytes(16)
    assert not any(sides.maker._cookie)
