from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from lab.nsm.wire import MAX_MESSAGE_SIZE, receive_message, send_message

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize("message", [b"", b"x", bytes(MAX_MESSAGE_SIZE)])
def test_messages_arrive_whole(pair: Pair, message: bytes) -> None:
    near, far = pair
    sender = threading.Thread(target=send_message, args=(near, message))
    sender.start()
    assert receive_message(far) == message
    sender.join()


def test_the_layout(pair: Pair) -> None:
    send_message(pair[0], b"abc")
    assert pair[1].recv(100) == b"\x00\x00\x00\x03abc"


def test_messages_keep_their_order_and_bounds(pair: Pair) -> None:
    for message in (b"one", b"two"):
        send_message(pair[0], message)
    assert [receive_message(pair[1]) for _ in range(2)] == [b"one", b"two"]


def test_the_end_between_two_messages(pair: Pair) -> None:
    pair[0].close()
    assert receive_message(pair[1]) is None


@pytest.mark.parametrize("piece", [b"\x00", b"\x00\x00\x00\x03", b"\x00\x00\x00\x03ab"])
def test_the_end_within_a_message(pair: Pair, piece: bytes) -> None:
    pair[0].sendall(piece)
    pair[0].close()
    with pytest.raises(ConnectionError, match="within"):
        receive_message(pair[1])


def test_a_length_without_bound_is_refused(pair: Pair) -> None:
    pair[0].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ConnectionError, match="4294967295"):
        receive_message(pair[1])
