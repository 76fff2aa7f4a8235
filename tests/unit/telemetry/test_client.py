"""The control socket's client: the endpoint's code, or something worse, runs at the other end of a socket pair."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.unit.control_sockets import PATH, ROUTES, ControlSockets, text
from wgvsock.errors import TransportError
from wgvsock.telemetry.client import MAX_ANSWER, NotRunningError, request


def test_the_client_reads_json_and_text(sockets: ControlSockets) -> None:
    sockets.serve(PATH, ROUTES)
    assert request(PATH, "GET", "/status") == (200, {"schema": "wgvsock/v1", "ready": True})
    assert request(PATH, "GET", "/ready") == (503, {"ready": False})
    assert request(PATH, "GET", "/live") == (200, "alive\n")
    assert request(PATH, "POST", "/reload") == (202, {"schema": "wgvsock/v1"})
    assert request(PATH, "GET", "/reload") == (405, "this method is not allowed here\n")


def test_the_client_reads_long_answers(sockets: ControlSockets) -> None:
    sockets.serve(PATH, {("GET", "/"): text("x" * 100_000)})
    assert request(PATH, "GET", "/") == (200, "x" * 100_000)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ECONNREFUSED])
def test_nobody_listens(sockets: ControlSockets, error: int) -> None:
    sockets.refuse(PATH, error)
    with pytest.raises(NotRunningError, match=PATH) as caught:
        request(PATH, "GET", "/status")
    assert caught.value.exit_code == 3
    assert "start it" in caught.value.fix


def test_somebody_else_s_socket(sockets: ControlSockets) -> None:
    sockets.refuse(PATH, errno.EACCES)
    with pytest.raises(TransportError, match="Permission denied") as caught:
        request(PATH, "GET", "/status")
    assert not isinstance(caught.value, NotRunningError)  # forbidden is told apart from missing
    assert caught.value.exit_code == 6


def test_a_service_that_hangs(sockets: ControlSockets) -> None:
    sockets.serve_silence(PATH)
    with pytest.raises(TransportError, match="timed out") as caught:
        request(PATH, "GET", "/status", timeout=1e-6)
    assert not isinstance(caught.value, NotRunningError)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def with_body(body: bytes) -> bytes:
    return HEAD % len(body) + body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 two OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno length",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
        with_body(b"{"),
        with_body(b"[" * 100_000),
        with_body(b'{"a":' * 20_000),
        with_body(b"9" * 5000),
        with_body(b'{"age": NaN}'),
        with_body(b'{"age": -Infinity}'),
        with_body(b'"\xff"'),
    ],
)
def test_answers_that_are_none(sockets: ControlSockets, answer: bytes) -> None:
    sockets.serve_bytes(PATH, answer)
    with pytest.raises(TransportError, match="gave no valid answer") as caught:
        request(PATH, "GET", "/status")
    assert "not a control socket" in caught.value.why


@pytest.mark.parametrize("cut", [1, 5])
def test_half_an_answer(sockets: ControlSockets, cut: int) -> None:
    sockets.serve_bytes(PATH, with_body(b'{"schema": "wgvsock/v1"}')[:-cut])
    with pytest.raises(TransportError, match="broke off"):
        request(PATH, "GET", "/status")


def speaking(sockets: ControlSockets, speak: Callable[[socket.socket], None]) -> None:
    """A listener at the path sends something for as long as the client reads."""

    def server(far: socket.socket) -> None:
        mine = far.dup()
        mine.setblocking(True)

        def run() -> None:
            with mine, contextlib.suppress(OSError):
                speak(mine)

        far.close()
        threading.Thread(target=run, daemon=True).start()

    sockets.serve_with(PATH, server)


def test_an_answer_without_end(sockets: ControlSockets) -> None:
    said = 0

    def speak(far: socket.socket) -> None:
        nonlocal said
        far.sendall(HEAD % 99_999_999)
        while True:
            said += far.send(b" " * 65536)

    speaking(sockets, speak)
    with pytest.raises(TransportError, match=f"longer than {MAX_ANSWER} bytes"):
        request(PATH, "GET", "/status", timeout=60)
    assert said < 2 * MAX_ANSWER


def test_an_answer_that_trickles_has_one_deadline_for_all_of_it(
    sockets: ControlSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second passes with every piece
    monkeypatch.setattr("wgvsock.telemetry.client.time", SimpleNamespace(monotonic=lambda: next(clock)))

    def speak(far: socket.socket) -> None:
        while True:
            far.send(b"H")

    speaking(sockets, speak)
    with pytest.raises(TransportError, match="timed out"):
        request(PATH, "GET", "/status", timeout=5)
    assert next(clock) <= 7
