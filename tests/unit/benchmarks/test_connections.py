"""Connections are counted as they end: answered, failed, or neither."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from benchmarks import connections
from benchmarks.connections import Echo, as_table, open_all

AT_ONCE = 10**9
"""A rate at which nothing has to wait."""


class Server:
    """Listens on the loopback until each of its connections has ended.

    Args:
        protocol: What a connection does.
    """

    def __init__(self, protocol: type[asyncio.Protocol]) -> None:
        self.open = 0
        self.ended = asyncio.Event()
        self.errors: list[type[Exception] | None] = []
        server = self

        class Counted(protocol):  # type: ignore[valid-type, misc]
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                server.open += 1
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                server.open -= 1
                server.errors.append(None if error is None else type(error))
                if not server.open:
                    server.ended.set()

        self._protocol = Counted

    async def __aenter__(self) -> int:
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.ended.wait()


@pytest.mark.asyncio
async def test_every_connection_is_asked_and_held() -> None:
    async with Server(Echo) as port:
        report = await open_all("127.0.0.1", port, 40, AT_ONCE)
        assert (report["wanted"], report["answered"], report["failed"]) == (40, 40, 0)
        assert report["median_ms"] <= report["p99_ms"]


@pytest.mark.asyncio
async def test_no_connection_leaves_a_port_behind_that_waits_for_its_end() -> None:
    server = Server(Echo)
    async with server as port:
        await open_all("127.0.0.1", port, 20, AT_ONCE)
    assert server.errors == [ConnectionResetError] * 20


@pytest.mark.asyncio
async def test_where_nobody_listens_all_fail() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    report = await open_all("127.0.0.1", port, 5, AT_ONCE)
    assert (report["answered"], report["failed"], report["median_ms"]) == (0, 5, None)


@pytest.mark.asyncio
async def test_one_without_an_answer_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.0)
    async with Server(asyncio.Protocol) as port:
        report = await open_all("127.0.0.1", port, 3, AT_ONCE)
        assert (report["answered"], report["failed"]) == (0, 0)


def test_the_table_has_a_line_for_each_row() -> None:
    row = {
        "system": "ours",
        "wanted": 5,
        "answered": 4,
        "failed": 1,
        "late": 0,
        "begun_per_second": 2000,
        "median_ms": 1.0,
        "p99_ms": 2.0,
        "cpu_us": 300.0,
    }
    assert as_table([row]).startswith("ours: 5 at 2000/s: 4 answered, 1 failed, 0 later than 1 s")


def test_datagrams_of_every_flow_come_back() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(10)
        server.bind(("127.0.0.1", 0))
        seen: list[tuple[str, int]] = []

        def answer() -> None:
            while len(seen) < 30:
                data, address = server.recvfrom(128)
                server.sendto(data, address)
                seen.append(address)

        thread = threading.Thread(target=answer)
        thread.start()
        report = connections.send_from_all("127.0.0.1", server.getsockname()[1], 10, 10**9, 30)
        thread.join()
    assert report == {"flows": 10, "sent": 30, "answered": 30}
    assert len(set(seen)) == 10


def test_the_server_sends_back_all_that_waits() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        client.settimeout(10)
        client.send(b"one")
        client.send(b"two")
        connections.echo_datagrams(server)
        assert [client.recv(8), client.recv(8)] == [b"one", b"two"]


def test_the_table_has_flows_too() -> None:
    assert as_table([{"system": "x", "flows": 10, "sent": 30, "answered": 29, "cpu_us": 8.5}]) == (
        "x: 10 UDP flows: 29 of 30 datagrams came back, 8.5 µs of processor time each"
    )
