"""The tiny HTTP server on one end of a socket pair, and its client on the other."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.control_sockets import ROUTES, text, turns_until
from wgvsock.addresses import Port, StreamAddress, TcpAddress, UnixAddress
from wgvsock.telemetry.endpoint import (
    MAX_CONNECTIONS,
    MAX_FIELDS,
    MAX_PER_CLIENT,
    MAX_REQUEST,
    REQUEST_TIMEOUT,
    Answer,
    Endpoint,
    Inquiry,
    Routes,
    Takeover,
    as_json,
    client_of,
    find_route,
)
from wgvsock.testing import without_waiting
from wgvsock.transports.errors import ListenError


async def connect(endpoint: Endpoint, address: StreamAddress = UnixAddress("nowhere")) -> socket.socket:  # noqa: B008
    """The client's end of a connection to an endpoint."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    endpoint._server.accept(far, address)
    return near


async def read_all(near: socket.socket) -> bytes:
    loop, answer = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(near, 65536):
        answer += part
    return answer


async def exchange(*parts: bytes, routes: Routes = ROUTES) -> bytes:
    """Return everything that the server sends for a request that arrives in these parts."""
    with await connect(Endpoint(UnixAddress("nowhere"), routes)) as near:
        for part in parts:
            await asyncio.get_running_loop().sock_sendall(near, part)
            await asyncio.sleep(0)  # so that the server reads each part by itself
        return await read_all(near)


def ask(*parts: bytes, routes: Routes = ROUTES) -> bytes:
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
        (b"GET /live/ HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"POST /live HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /reload HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"get /live HTTP/1.1", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /live HTTP/2", HTTPStatus.BAD_REQUEST),
        (b"GET /live", HTTPStatus.BAD_REQUEST),
        (b"GET  /live HTTP/1.1", HTTPStatus.BAD_REQUEST),
        (b"GET /live HTTP/1.", HTTPStatus.BAD_REQUEST),
        (b"GET ftp://pod/live HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"OPTIONS * HTTP/1.1", HTTPStatus.NOT_FOUND),
        (b"GET http://pod HTTP/1.1", HTTPStatus.NOT_FOUND),
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
    assert not endpoint._server._connections


@without_waiting
async def test_a_client_that_leaves_is_forgotten() -> None:
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    near = await connect(endpoint)
    await asyncio.sleep(0)
    assert len(endpoint._server._connections) == 1
    near.close()
    await asyncio.sleep(1)
    assert not endpoint._server._connections


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def is_open(near: socket.socket) -> bool:
    await turns()
    try:
        return near.recv(1) != b""
    except BlockingIOError:
        return True


def host(text: str) -> TcpAddress:
    return TcpAddress(text, Port(40000))


@without_waiting
async def test_silent_connections_do_not_keep_a_probe_out() -> None:
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    silent = [await connect(endpoint, host(f"10.0.{number % 7}.1")) for number in range(500)]
    for _ in range(50):
        with await connect(endpoint, host("10.0.0.1")) as probe:  # from the address of one of them, even
            await loop.sock_sendall(probe, b"GET /live HTTP/1.1\r\n\r\n")
            assert status_of(await read_all(probe)) == HTTPStatus.OK
    assert loop.time() == 1000  # at once, not when their time is up
    assert len(endpoint._server._connections) <= MAX_CONNECTIONS
    endpoint.close()
    for client in silent:
        client.close()


@without_waiting
async def test_the_oldest_makes_room() -> None:
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    clients = [await connect(endpoint, host(f"10.0.0.{number}")) for number in range(MAX_CONNECTIONS)]
    assert await is_open(clients[0])
    clients.append(await connect(endpoint, host("10.0.1.1")))
    assert [await is_open(client) for client in clients] == [False] + [True] * MAX_CONNECTIONS
    endpoint.close()
    for client in clients:
        client.close()


@without_waiting
async def test_a_client_s_own_connections_make_room_first() -> None:
    endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
    others = [await connect(endpoint, host(f"10.0.0.{number}")) for number in range(8)]
    greedy = [await connect(endpoint, host(f"fd00::{number:x}")) for number in range(MAX_PER_CLIENT + 3)]
    assert all([await is_open(client) for client in others])
    assert [await is_open(client) for client in greedy] == [False] * 3 + [True] * MAX_PER_CLIENT
    endpoint.close()
    for client in [*others, *greedy]:
        client.close()


@pytest.mark.parametrize("addresses", [1, MAX_CONNECTIONS])
@without_waiting
async def test_who_waits_for_an_answer_goes_last(addresses: int) -> None:
    """Clients behind one address crowd an endpoint with slow answers."""
    ready = asyncio.Event()

    async def answer(_query: Mapping[str, str]) -> Answer:
        await ready.wait()
        return Answer("here it is\n")

    endpoint = Endpoint(UnixAddress("nowhere"), {("GET", "/slow"): Inquiry(answer)})
    waiting = await connect(endpoint, host("10.0.0.0"))
    await asyncio.get_running_loop().sock_sendall(waiting, b"GET /slow HTTP/1.1\r\n\r\n")
    await turns()
    others = [await connect(endpoint, host(f"10.0.0.{number % addresses}")) for number in range(2 * MAX_CONNECTIONS)]
    assert await is_open(waiting)
    ready.set()
    assert b"here it is" in await read_all(waiting)
    endpoint.close()
    for client in [waiting, *others]:
        client.close()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (TcpAddress("10.0.0.1", Port(1)), "10.0.0.1"),
        (TcpAddress("2001:db8::1:2:3:4", Port(1)), "2001:db8::/64"),
        (TcpAddress("fe80::1%eth0", Port(1)), "fe80::/64"),
        (UnixAddress("/run/x.sock"), ""),
    ],
)
def test_whose_connection_it_is(address: StreamAddress, client: str) -> None:
    assert client_of(address) == client


def test_a_request_that_is_here_already_is_answered_when_it_is_accepted() -> None:
    async def test() -> None:
        endpoint = Endpoint(UnixAddress("nowhere"), ROUTES)
        near, far = socket.socketpair()
        far.setblocking(False)
        near.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        endpoint._server.accept(far, host("10.0.0.1"))
        assert not endpoint._server._connections
        with near:
            assert status_of(near.recv(4096)) == HTTPStatus.OK

    asyncio.run(test())


@pytest.mark.parametrize(
    "line",
    [
        b"GET /live?verbose=1&x=/y HTTP/1.1",
        b"GET /live#part HTTP/1.0",
        b"GET http://10.0.0.1:9808/live HTTP/1.1",
        b"GET HTTPS://pod/live?x HTTP/1.1",
        b"\r\nGET /live HTTP/1.1",
    ],
)
def test_forms_of_one_target(line: bytes) -> None:
    assert status_of(ask(line + b"\r\n\r\n")) == HTTPStatus.OK


@pytest.mark.parametrize(("path", "length"), [("/live", 6), ("/reload", 32), ("/nothing", 22)])
def test_head_has_the_length_and_no_body(path: str, length: int) -> None:
    answer = ask(f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
    assert f"\r\nContent-Length: {length}\r\n".encode() in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_method_that_is_not_allowed_is_told_the_others() -> None:
    assert b"\r\nAllow: GET, HEAD\r\n" in ask(b"POST /live HTTP/1.1\r\n\r\n")
    assert b"\r\nAllow: POST\r\n" in ask(b"HEAD /reload HTTP/1.1\r\n\r\n")


def test_a_body_that_nobody_asked_for_does_not_cost_the_answer() -> None:
    answer = ask(b"POST /reload HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000)
    assert status_of(answer) == HTTPStatus.ACCEPTED


@given(st.binary(max_size=200))
def test_whatever_is_asked_one_whole_answer_comes(head: bytes) -> None:
    method, route = find_route(head, ROUTES)
    assert method == "" or method.encode("latin-1") in head
    answer = route()
    assert isinstance(answer, Answer)
    assert answer.status in set(HTTPStatus)


@without_waiting
async def test_a_client_that_does_not_read_is_dropped() -> None:
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), {("GET", "/"): text("x" * 10_000_000)})
    with await connect(endpoint) as near:
        await loop.sock_sendall(near, b"GET / HTTP/1.1\r\n\r\n")
        await turns()
        assert len(endpoint._server._connections) == 1
        await asyncio.sleep(REQUEST_TIMEOUT)
        await turns()
        assert not endpoint._server._connections


def test_a_long_answer_is_sent_in_pieces() -> None:
    answer = ask(b"GET / HTTP/1.1\r\n\r\n", routes={("GET", "/"): text("x" * 10_000_000)})
    assert len(answer.partition(b"\r\n\r\n")[2]) == 10_000_000


def test_a_client_that_resets() -> None:
    async def test() -> None:
        endpoint = Endpoint(UnixAddress("nowhere"), {("GET", "/"): text("x" * 10_000_000)})
        near = await connect(endpoint)
        await asyncio.get_running_loop().sock_sendall(near, b"GET / HTTP/1.1\r\n\r\n")
        await turns()
        near.close()
        await turns_until(lambda: not endpoint._server._connections)

    asyncio.run(test())


@without_waiting
async def test_a_route_that_fails_ends_only_its_connection() -> None:
    def fail() -> Answer:
        raise RuntimeError("a bug")

    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    assert status_of(await exchange(b"GET /bug HTTP/1.1\r\n\r\n", routes={("GET", "/bug"): fail})) == 500
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
            await turns_until(lambda: endpoint._server._connections)
            endpoint.close()
            await turns_until(lambda: not endpoint._server._connections)  # now, not when their time is up
            assert await read_all(client) == b""

    asyncio.run(test())


def test_a_tcp_address() -> None:
    async def test() -> None:
        endpoint = Endpoint(TcpAddress("127.0.0.1", Port(0)), ROUTES)
        await endpoint.start()
        assert endpoint._listener is not None
        address = endpoint._listener._socket.getsockname()
        assert status_of(await ask_at(socket.AF_INET, address)) == HTTPStatus.OK
        endpoint.close()
        with pytest.raises(ConnectionRefusedError):
            await ask_at(socket.AF_INET, address)

    asyncio.run(test())


def test_every_address_of_both_families() -> None:
    async def test() -> None:
        endpoint = Endpoint(TcpAddress("::", Port(0)), ROUTES)
        await endpoint.start()
        assert endpoint._listener is not None
        port = endpoint._listener._socket.getsockname()[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            assert status_of(await ask_at(family, (host, port))) == HTTPStatus.OK
        endpoint.close()

    asyncio.run(test())


def test_an_address_that_cannot_be_bound(tmp_path: Path) -> None:
    endpoint = Endpoint(UnixAddress(str(tmp_path / "missing" / "relay.sock")), ROUTES)
    with pytest.raises(ListenError):
        asyncio.run(endpoint.start())
    endpoint.close()


# Inquiries.


def inquiry(delay: float = 0.0) -> Inquiry:
    """Answer with the request, after a while."""

    async def answer(query: Mapping[str, str]) -> Answer:
        await asyncio.sleep(delay)
        return as_json(dict(query))

    return Inquiry(answer)


@pytest.mark.parametrize(
    ("target", "query"),
    [
        (b"/ping", {}),
        (b"/ping?enclave=wallet", {"enclave": "wallet"}),
        (b"http://pod:80/ping?enclave=a%20b&empty=#part?no=1", {"enclave": "a b", "empty": ""}),
        (b"/ping?enclave=one&enclave=two", {"enclave": "two"}),
        (b"/ping?" + b"&".join(b"f%d=1" % n for n in range(MAX_FIELDS)), {f"f{n}": "1" for n in range(MAX_FIELDS)}),
    ],
)
def test_an_inquiry_gets_the_fields_of_its_query(target: bytes, query: Mapping[str, str]) -> None:
    answer = ask(b"POST " + target + b" HTTP/1.1\r\n\r\n", routes={("POST", "/ping"): inquiry()})
    assert status_of(answer) == HTTPStatus.OK
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == query


def test_a_query_has_a_bounded_number_of_fields() -> None:
    target = b"/ping?" + b"&".join([b"a=1"] * (MAX_FIELDS + 1))
    answer = ask(b"POST " + target + b" HTTP/1.1\r\n\r\n", routes={("POST", "/ping"): inquiry()})
    assert status_of(answer) == HTTPStatus.BAD_REQUEST


@without_waiting
async def test_an_inquiry_may_take_its_time_and_holds_nobody_up() -> None:
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), {("GET", "/slow"): inquiry(2.0), **ROUTES})
    with await connect(endpoint) as slow, await connect(endpoint) as quick:
        begun = loop.time()
        await loop.sock_sendall(slow, b"GET /slow HTTP/1.1\r\n\r\nand a body that nobody asked for")
        await loop.sock_sendall(quick, b"GET /live HTTP/1.1\r\n\r\n")
        assert status_of(await read_all(quick)) == HTTPStatus.OK
        assert loop.time() == begun
        assert status_of(await read_all(slow)) == HTTPStatus.OK
        assert loop.time() == pytest.approx(begun + 2.0)


@without_waiting
async def test_an_inquiry_ends_with_its_connection() -> None:
    ended: list[float] = []

    async def never(_query: Mapping[str, str]) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asyncio.get_running_loop().time())
        raise AssertionError

    loop = asyncio.get_running_loop()
    endpoint = Endpoint(UnixAddress("nowhere"), {("GET", "/never"): Inquiry(never)})
    begun = loop.time()
    with await connect(endpoint) as near:
        await loop.sock_sendall(near, b"GET /never HTTP/1.1\r\n\r\n")
        assert await read_all(near) == b""
        assert loop.time() == pytest.approx(begun + REQUEST_TIMEOUT)
    await asyncio.sleep(0)
    assert len(ended) == 1


def test_a_bug_in_an_inquiry_is_told_and_raised() -> None:
    async def broken(_query: Mapping[str, str]) -> Answer:
        raise ZeroDivisionError

    async def scenario() -> tuple[bytes, list[BaseException]]:
        raised: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        answer = await exchange(b"GET /broken HTTP/1.1\r\n\r\n", routes={("GET", "/broken"): Inquiry(broken)})
        return answer, raised

    answer, raised = asyncio.run(scenario())
    assert status_of(answer) == HTTPStatus.INTERNAL_SERVER_ERROR
    assert [type(error) for error in raised] == [ZeroDivisionError]


# Routes that continue with the connection themselves.


@without_waiting
async def test_a_takeover_gets_the_socket_and_the_query_and_no_time_limit() -> None:
    taken: list[tuple[dict[str, str], socket.socket]] = []
    routes: Routes = {("GET", "/events"): Takeover(lambda query, sock: taken.append((dict(query), sock)))}
    endpoint = Endpoint(UnixAddress("nowhere"), routes)
    near = await connect(endpoint)
    await asyncio.get_running_loop().sock_sendall(near, b"GET /events?after=5 HTTP/1.1\r\n\r\n")
    await asyncio.sleep(2 * REQUEST_TIMEOUT)
    ((query, sock),) = taken
    assert query == {"after": "5"}
    assert not endpoint._server._connections  # it no longer counts towards the limits
    endpoint.close()
    sock.send(b"still here")
    assert near.recv(64) == b"still here"
    near.close()
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    assert sock.gettimeout() == 0
    sock.close()
