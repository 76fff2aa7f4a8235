"""The tiny HTTP server on one end of a socket pair, and its client on the other."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import stat
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets, text, turns_until
from wgvsock.addresses import Port, TcpAddress, UnixAddress
from wgvsock.errors import TransportError
from wgvsock.telemetry.endpoint import (
    MAX_CONNECTIONS,
    MAX_REQUEST,
    REQUEST_TIMEOUT,
    Answer,
    Endpoint,
    NotRunningError,
    Route,
    as_json,
    request,
)
from wgvsock.testing import without_waiting
from wgvsock.transports.errors import ListenError

PATH = "/run/wgvsock/relay.sock"
ROUTES: Mapping[tuple[str, str], Route] = {
    ("GET", "/live"): text("alive\n"),
    ("GET", "/ready"): lambda: as_json({"ready": False}, HTTPStatus.SERVICE_UNAVAILABLE),
    ("GET", "/status"): lambda: as_json({"schema": "wgvsock/v1", "ready": True}),
    ("POST", "/reload"): lambda: as_json({"schema": "wgvsock/v1"}, HTTPStatus.ACCEPTED),
}


async def connect(endpoint: Endpoint) -> socket.socket:
    """The client's end of a connection to an endpoint."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(endpoint._connection, far)
    return near


async def read_all(near: socket.socket) -> bytes:
    loop, answer = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(near, 65536):
        answer += part
    return answer


async def exchange(*parts: bytes, routes: Mapping[tuple[str, str], Route] = ROUTES) -> bytes:
    """Everything that the server says to a request that arrives in these parts."""
    with await connect(Endpoint(UnixAddress("nowhere"), routes)) as near:
        for part in parts:
            await asyncio.get_running_loop().sock_sendall(near, part)
            await asyncio.sleep(0)  # so that the server reads each part by itself
        return await read_all(near)


def ask(*parts: bytes, routes: Mapping[tuple[str, str], Route] = ROUTES) -> bytes:
    return asyncio.run(exchange(*parts, routes=routes))


def status_of(answer: bytes) -> int:
    version, status, _ = answer.split(b" ", 2)
    assert version == b"HTTP/1.1"
    return int(status)


def test_an_answer_in_full() -> None:
    assert ask(b"GET /live HTTP/1.1\r\nHost: pod\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: 6\r\n"
        b"Connection: close\r\n\r\nalive\n"
    )


def test_an_answer_in_json_with_a_status_of_its_own() -> None:
    head, _, body = ask(b"GET /ready HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n")
    assert json.loads(body) == {"ready": False}


def test_the_length_is_in_bytes() -> None:
    answer = ask(b"GET / HTTP/1.1\r\n\r\n", routes={("GET", "/"): text("Zürich")})
    assert b"\r\nContent-Length: 7\r\n" in answer
    assert answer.endswith("Zürich".encode())


def test_a_request_may_arrive_byte_by_byte() -> None:
    whole = b"POST /reload HTTP/1.1\r\nHost: pod\r\nContent-Length: 0\r\n\r\n"
    answer = ask(*(bytes([byte]) for byte in whole))
    assert status_of(answer) == HTTPStatus.ACCEPTED
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /nothing HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"GET /live?x=1 HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"GET /live/ HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"POST /live HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /reload HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"get /live HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /live HTTP/2", HTTPStatus.BAD_REQUEST),
        (b"GET /live", HTTPStatus.BAD_REQUEST),
        (b"GET  /live HTTP/1.1", HTTPStatus.BAD_REQUEST),
        (b"", HTTPStatus.BAD_REQUEST),
        (b"\xff\x00\xfe", HTTPStatus.BAD_REQUEST),
    ],
)
def test_what_is_refused(head: bytes, status: HTTPStatus) -> None:
    assert status_of(ask(head + b"\r\n\r\n")) == status


def test_a_refusal_echoes_nothing() -> None:
    assert b"secret" not in ask(b"GET /secret HTTP/1.1\r\n\r\n")


def head_of(length: int) -> bytes:
    start, end = b"GET /live HTTP/1.1\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (length - len(start) - len(end)) + end


def test_the_longest_request() -> None:
    assert status_of(ask(head_of(MAX_REQUEST))) == HTTPStatus.OK


def test_a_request_that_is_longer() -> None:
    assert status_of(ask(head_of(MAX_REQUEST + 1))) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def test_a_head_that_never_ends_is_cut_off() -> None:
    assert status_of(ask(b"x" * (MAX_REQUEST + 1))) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


@without_waiting
async def test_an_idle_client_is_dropped() -> None:
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    began = loop.time()
    with await connect(endpoint) as near:
        await loop.sock_sendall(near, b"GET /live HTTP/1.1\r\n")
        assert await read_all(near) == b""
    assert loop.time() - began == pytest.approx(REQUEST_TIMEOUT)
    assert not endpoint._connections


@without_waiting
async def test_a_client_that_leaves_is_forgotten() -> None:
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    near = await connect(endpoint)
    await asyncio.sleep(0)
    assert len(endpoint._connections) == 1
    near.close()
    await asyncio.sleep(1)
    assert not endpoint._connections


@without_waiting
async def test_connections_are_limited() -> None:
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    clients = [await connect(endpoint) for _ in range(MAX_CONNECTIONS)]
    with await connect(endpoint) as one_too_many:
        assert await read_all(one_too_many) == b""
    assert loop.time() == 1000  # at once, not by its time-out
    for client in clients:
        await loop.sock_sendall(client, b"GET /live HTTP/1.1\r\n\r\n")
        assert status_of(await read_all(client)) == HTTPStatus.OK
        client.close()
    with await connect(endpoint) as again:
        await loop.sock_sendall(again, b"GET /live HTTP/1.1\r\n\r\n")
        assert status_of(await read_all(again)) == HTTPStatus.OK


@without_waiting
async def test_a_route_that_fails_ends_only_its_connection() -> None:
    def fail() -> Answer:
        raise RuntimeError("a bug")

    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    assert await exchange(b"GET /bug HTTP/1.1\r\n\r\n", routes={("GET", "/bug"): fail}) == b""
    assert [str(context["exception"]) for context in reported] == ["a bug"]
    assert status_of(await exchange(b"GET /live HTTP/1.1\r\n\r\n")) == HTTPStatus.OK


# Listening: in a folder of the test's, and on the loopback address.


async def ask_at(family: socket.AddressFamily, address: Any) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, b"GET /live HTTP/1.1\r\n\r\n")
        return await read_all(client)


def test_a_unix_socket_is_its_owner_s_alone_and_goes_with_the_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"

    async def test() -> None:
        endpoint = Endpoint(UnixAddress(str(path)), ROUTES)
        await endpoint.start()
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert status_of(await ask_at(socket.AF_UNIX, str(path))) == HTTPStatus.OK
        endpoint.close()
        assert not path.exists()
        path.touch()
        endpoint.close()  # the path may be another's by now
        assert path.exists()

    asyncio.run(test())


def test_closing_ends_what_is_open(tmp_path: Path) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "relay.sock")
        endpoint = Endpoint(UnixAddress(path), ROUTES)
        await endpoint.start()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            await loop.sock_connect(client, path)
            await turns_until(lambda: endpoint._connections)
            endpoint.close()
            await turns_until(lambda: not endpoint._connections)  # now, not when their time is up
            assert await read_all(client) == b""

    asyncio.run(test())


def test_a_tcp_address() -> None:
    async def test() -> None:
        endpoint = Endpoint(TcpAddress("127.0.0.1", Port(0)), ROUTES)
        await endpoint.start()
        assert endpoint._server is not None
        address = endpoint._server.sockets[0].getsockname()
        assert status_of(await ask_at(socket.AF_INET, address)) == HTTPStatus.OK
        endpoint.close()
        with pytest.raises(ConnectionRefusedError):
            await ask_at(socket.AF_INET, address)

    asyncio.run(test())


def test_an_address_that_cannot_be_bound(tmp_path: Path) -> None:
    endpoint = Endpoint(UnixAddress(str(tmp_path / "missing" / "relay.sock")), ROUTES)
    with pytest.raises(ListenError):
        asyncio.run(endpoint.start())
    endpoint.close()


# The client.


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


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n\xff",
    ],
)
def test_answers_that_are_none(sockets: ControlSockets, answer: bytes) -> None:
    sockets.serve_bytes(PATH, answer)
    with pytest.raises(TransportError, match="gave no answer"):
        request(PATH, "GET", "/status")
