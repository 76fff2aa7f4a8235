from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors.generate import FOLDER
from wgvsock.errors import RemoteProtocolError
from wgvsock.wireguard.messages import (
    CookieReply,
    HandshakeInitiation,
    HandshakeResponse,
    Message,
    TransportData,
    parse_message,
)

HANDSHAKES: list[dict[str, Any]] = json.loads((FOLDER / "handshake.json").read_text())["handshakes"]
INDEX = st.integers(0, 2**32 - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(HandshakeInitiation, INDEX, exactly(32), exactly(48), exactly(28), exactly(16), exactly(16)),
    st.builds(HandshakeResponse, INDEX, INDEX, exactly(32), exactly(16), exactly(16), exactly(16)),
    st.builds(CookieReply, INDEX, exactly(24), exactly(32)),
    st.builds(TransportData, INDEX, st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=100)),
)


@given(MESSAGES)
def test_parse_is_the_inverse_of_pack(message: Message) -> None:
    assert parse_message(message.pack()) == message
    assert parse_message(memoryview(bytearray(message.pack()))) == message


@given(MESSAGES, st.integers(1, 3), st.integers(1, 255))
def test_reserved_bytes_are_zero(message: Message, position: int, value: int) -> None:
    data = bytearray(message.pack())
    data[position] = value
    with pytest.raises(RemoteProtocolError):
        parse_message(data)


@given(MESSAGES, st.integers(0, 200))
def test_other_sizes_are_refused(message: Message, size: int) -> None:
    data = message.pack().ljust(200, b"\0")[:size]
    if isinstance(message, TransportData) and size >= 32:
        assert isinstance(parse_message(data), TransportData)
    elif size == len(message.pack()):
        assert parse_message(data) == message
    else:
        with pytest.raises(RemoteProtocolError):
            parse_message(data)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_a_message(data: bytes) -> None:
    try:
        message = parse_message(data)
    except RemoteProtocolError:
        return
    assert message.pack() == data


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda vector: vector["name"])
def test_fields_of_the_vectors(vector: dict[str, Any]) -> None:
    initiation = parse_message(bytes.fromhex(vector["initiation"]))
    assert isinstance(initiation, HandshakeInitiation)
    assert initiation.sender_index == vector["initiator_index"]
    assert initiation.mac2 == bytes(16)
    response = parse_message(bytes.fromhex(vector["response"]))
    assert isinstance(response, HandshakeResponse)
    assert (response.sender_index, response.receiver_index) == (vector["responder_index"], vector["initiator_index"])
    cookie = parse_message(bytes.fromhex(vector["cookie_reply"]))
    assert isinstance(cookie, CookieReply)
    assert cookie.nonce.hex() == vector["cookie_nonce"]
    keepalive = parse_message(bytes.fromhex(vector["keepalive_from_initiator"]))
    assert isinstance(keepalive, TransportData)
    assert keepalive.is_keepalive
    data = parse_message(bytes.fromhex(vector["data_from_responder"]))
    assert isinstance(data, TransportData)
    assert not data.is_keepalive
    assert (data.receiver_index, data.counter) == (vector["initiator_index"], 0)
