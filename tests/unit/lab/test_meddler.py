from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import cbor2
import pytest

from lab.meddler import PATIENCE, Meddler, frame, untouched
from lab.tap import Kind

HELLO = cbor2.dumps({1: 1, 2: 0})


class Between(Meddler):
    """A meddler between two socket pairs, without a listener."""

    def __init__(self, relay: socket.socket, enclave: socket.socket) -> None:
        self.meddle = untouched
        self._patience = PATIENCE
        self.seen: list[tuple[Kind, str, bytes]] = []
        self.thread = threading.Thread(target=self.join, args=(relay, enclave))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, Between]]:
    relay, relay_inner = socket.socketpair()
    enclave, enclave_inner = socket.socketpair()
    meddler = Between(relay_inner, enclave_inner)
    relay.settimeout(10)
    enclave.settimeout(10)
    yield relay, enclave, meddler
    for sock in (relay, enclave):
        sock.close()
    meddler.thread.join(10)
    relay_inner.close()
    enclave_inner.close()
    assert not meddler.thread.is_alive()


def test_frames_pass_untouched_in_both_directions(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    meddler.thread.start()
    enclave.sendall(frame(HELLO))
    assert relay.recv(100) == frame(HELLO)
    relay.sendall(frame(b"\xff"))
    assert enclave.recv(100) == frame(b"\xff")
    assert meddler.seen == [(Kind.TO_RELAY, "HELLO", HELLO), (Kind.TO_ENCLAVE, "unknown", b"\xff")]


def test_a_frame_can_be_changed_doubled_or_dropped(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    answers = iter([[frame(b"other")], [frame(b"a"), frame(b"b")], [], [b"raw"]])
    meddler.meddle = lambda kind, name, payload: next(answers)
    meddler.thread.start()
    relay.sendall(frame(b"1") + frame(b"2") + frame(b"3") + frame(b"4"))
    expected = frame(b"other") + frame(b"a") + frame(b"b") + b"raw"
    received = b""
    while len(received) < len(expected):
        received += enclave.recv(100)
    assert received == expected


def test_when_one_end_closes_so_does_the_other(ends: tuple[socket.socket, socket.socket, Between]) -> None:
    relay, enclave, meddler = ends
    meddler.thread.start()
    relay.sendall(frame(HELLO))
    relay.close()
    with enclave.makefile("rb") as stream:
        assert stream.read() == frame(HELLO)
