from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest

from lab.guest import traffic
from lab.guest.traffic import Reports, keep_tcp, keep_udp, open_new, parse_arguments
from tests.unit.tcp_server import serving


class Heard(Reports):
    """Keeps messages, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.said: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    def say(self, **what: object) -> None:
        self.said.put_nowait(what)


@contextlib.asynccontextmanager
async def running(work: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_PERIOD", 0.001)


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_connection_is_kept_and_a_cut_is_told() -> None:
    connections: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: TID251 (a server's)
        connections.append(writer)
        while line := await reader.readline():
            writer.write(line)

    reports = Heard()
    async with serving(echo) as port, running(keep_tcp(reports, "127.0.0.1", port, "marker")):
        await until(lambda: reports.flows.get("tcp4"))
        connections[0].transport.abort()
        event = await asyncio.wait_for(reports.said.get(), 10)
        assert (event["event"], event["flow"]) == ("cut", "tcp4")
        await until(lambda: len(connections) == 2)  # and there is another
        connections[1].transport.abort()


@pytest.mark.asyncio
async def test_a_connection_that_never_was_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []

    async def refuse(host: str, port: int) -> None:
        attempts.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    reports = Heard()
    async with running(keep_tcp(reports, "127.0.0.1", 9, "marker")):
        await until(lambda: len(attempts) > 1)
    assert reports.said.empty()
    assert reports.flows == {"tcp4": 0.0}


@pytest.mark.asyncio
async def test_a_flow_of_datagrams() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        reports = Heard()
        async with running(keep_udp(reports, "127.0.0.1", server.getsockname()[1], "marker")):
            data, address = await asyncio.wait_for(loop.sock_recvfrom(server, 2048), 10)
            assert data.startswith(b"marker ")
            await loop.sock_sendto(server, data, address)
            await until(lambda: reports.flows["udp4"])
        assert reports.flows["udp4"] == pytest.approx(float(data.split()[1]))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "well"), [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 503 No\r\n\r\n", False), (b"", False)]
)
async def test_new_connections_all_the_time(answer: bytes, well: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: TID251 (a server's)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    reports = Heard()
    async with serving(serve) as port, running(open_new(reports, "127.0.0.1", port, 0.001)):
        await until(lambda: "http4" in reports.requests)
        await until(lambda: reports.requests["http4"]["ok"] > 1 if well else reports.said.qsize() > 1)
        if not well:
            event = reports.said.get_nowait()
            assert event["event"] == "failed"
            assert event["request"] == "http4"
        assert bool(reports.requests["http4"]["ok"]) is well


@pytest.mark.asyncio
async def test_the_state_names_what_is_not_over(capsys: pytest.CaptureFixture[str]) -> None:
    reports = Reports()
    reports.flows["tcp4"] = 5.0
    reports.requests["http4"] = {"ok": 2, "last": 4.0, "pending": {8.0, 7.0}}
    async with running(reports.go_on()):
        await asyncio.sleep(0)
    said = json.loads(capsys.readouterr().out.splitlines()[0])
    assert said["event"] == "state"
    assert said["flows"] == {"tcp4": 5.0}
    assert said["requests"] == {"http4": {"ok": 2, "last": 4.0, "oldest": 7.0}}


def test_what_it_is_told() -> None:
    arguments = parse_arguments(["--echo", "::1", "7", "--http", "::1", "80", "--http", "127.0.0.1", "80"])
    assert arguments.echo == [["::1", "7"]]
    assert len(arguments.http) == 2
    assert traffic.family_of("::1")[1] == 6
