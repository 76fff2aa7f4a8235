"""Reports served over the tunnel: only to the gateway, by a cursor, within the relay's bounds."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from wgvsock.addresses import Port, TcpAddress, UnixAddress
from wgvsock.enclave.application.reports import HEARTBEAT, ReportServer
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.telemetry.reports import ApplicationState, Change, Heartbeat, Hello, Output, Phase, Report, decode
from wgvsock.testing import without_waiting
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ListenError

OWN, GATEWAY = ip_address("10.73.0.2"), ip_address("10.73.0.1")
PLACE = (OWN, 51822)


class Agent:
    """A report server on a machine in memory, and a relay's machine."""

    def __init__(self, limit: int = 131_072, **settings: Any) -> None:
        self.machine, self.relay = MemoryMachine(), MemoryMachine()
        self.relay.other_end = self.machine
        self.ring = Ring(limit)
        self.sent: list[int] = []
        self.runs = True
        self.clients: list[socket.socket] = []
        self.server = ReportServer(self.machine, "wg0", ApplicationSettings(**settings), self.ring, self._send)
        self.server.listen([OWN], [GATEWAY])

    def _send(self, number: int) -> bool:
        self.sent.append(number)
        return self.runs

    def close(self) -> None:
        self.server.close()
        for sock in self.clients:
            sock.close()

    async def ask(self, request: str) -> socket.socket:
        sock = await self.relay.connect_in_tunnel("wg0", *PLACE, seconds=1)
        self.clients.append(sock)
        await asyncio.get_running_loop().sock_sendall(sock, f"{request} HTTP/1.1\r\n\r\n".encode())
        return sock

    async def read(self, query: str = "") -> Reader:
        reader = Reader(await self.ask(f"GET /events{query}"))
        assert (await reader.line()).startswith(b"HTTP/1.1 200 OK")
        while await reader.line() != b"\r\n":
            pass
        return reader


class Reader:
    """A relay's end of a stream of reports."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""

    async def line(self) -> bytes:
        """The next line, empty at the end."""
        while b"\n" not in self._data:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            if not data:
                return b""
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return line + b"\n"

    async def report(self) -> Report:
        return decode(await self.line())

    async def say(self, text: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, text)
        await asyncio.sleep(0.01)


@without_waiting
async def test_reports_arrive_as_they_come() -> None:
    agent = Agent()
    agent.ring.change("started", ApplicationState(Phase.RUNNING, starts=1), 1)
    reader = await agent.read()
    hello = await reader.report()
    assert isinstance(hello, Hello)
    assert hello.state.phase is Phase.RUNNING
    assert isinstance(await reader.report(), Change)
    agent.ring.write("stdout", b"hello\n", 2)
    assert await reader.report() == Output(2, 2, "stdout", b"hello\n", 0, 0)
    assert agent.server.is_read
    reader.sock.close()
    await asyncio.sleep(0.01)
    assert not agent.server.is_read
    assert agent.server.was_read
    agent.close()


@without_waiting
async def test_a_cursor_goes_on_where_a_lost_stream_ended() -> None:
    agent = Agent()
    for number in range(5):
        agent.ring.write("stdout", b"%d\n" % number, 0)
    reader = await agent.read()
    hello = await reader.report()
    assert isinstance(hello, Hello)
    first = await reader.report()
    assert isinstance(first, Output)
    again = await agent.read(f"?source={hello.source}&after={first.number}")
    assert isinstance(await again.report(), Hello)
    rest = [await again.report() for _ in range(4)]
    assert [report.data for report in rest if isinstance(report, Output)] == [b"1\n", b"2\n", b"3\n", b"4\n"]
    while await reader.line():  # the older stream of the two has ended
        pass
    assert agent.server.is_read
    agent.server.close()
    assert await again.line() == b""
    agent.close()


@pytest.mark.parametrize("query", ["?source=other&after=3", "?after=3", "?source=OWN&after=-1", "?source=OWN&after=x"])
@without_waiting
async def test_a_cursor_of_another_agent_begins_anew(query: str) -> None:
    agent = Agent()
    for _ in range(5):
        agent.ring.write("stdout", b"x", 0)
    reader = await agent.read(query.replace("OWN", agent.server._source))
    await reader.report()
    first = await reader.report()
    assert isinstance(first, Output)
    assert first.number == 1
    reader.sock.close()
    agent.close()


@without_waiting
async def test_acknowledgements_end_the_wait_for_delivery() -> None:
    agent = Agent()
    reader = await agent.read()
    agent.ring.write("stdout", b"x", 0)
    agent.ring.change("exited", ApplicationState(Phase.ENDED, code=3), 0)
    waiting = asyncio.ensure_future(agent.server.delivered(60))
    await reader.say(b"1\n")
    assert not waiting.done()
    await reader.say(b"2")
    assert not waiting.done()
    await reader.say(b"\n")
    await waiting
    assert agent.ring.acknowledged == 2
    hello = await (await agent.read()).report()
    assert isinstance(hello, Hello)
    assert hello.acknowledged == 2
    agent.close()


@without_waiting
async def test_nobody_waits_for_ever_for_a_relay() -> None:
    agent = Agent()
    agent.ring.write("stdout", b"x", 0)
    began = asyncio.get_running_loop().time()
    await agent.server.delivered(60)
    assert asyncio.get_running_loop().time() - began == pytest.approx(60)
    agent.close()


@pytest.mark.parametrize("said", [b"x\n", b"-1\n", b"9" * 20, b"1" * 21 + b"\n", b"\n"])
@without_waiting
async def test_what_is_no_acknowledgement_ends_the_stream(said: bytes) -> None:
    agent = Agent()
    reader = await agent.read()
    await reader.say(said)
    assert not agent.server.is_read
    agent.close()


@without_waiting
async def test_a_relay_that_reads_nothing_costs_one_report() -> None:
    agent = Agent(limit=50_000)
    reader = await agent.read()
    for _ in range(2000):
        agent.ring.write("stdout", b"x" * 10_000, 0)
    stream = agent.server._stream
    assert stream is not None
    assert len(stream._unsent) < 131_072
    assert stream._cursor < agent.ring.last - 4  # the ring has gone on without it
    seen, last = [], None
    await reader.report()
    while last != agent.ring.last:
        report = await reader.report()
        if isinstance(report, Output):
            last = report.number
            seen.append(last)
    assert seen == sorted(set(seen))
    assert len(seen) < 2000
    reader.sock.close()
    agent.close()


@without_waiting
async def test_silence_has_a_heartbeat() -> None:
    agent = Agent()
    reader = await agent.read()
    await reader.report()
    began = asyncio.get_running_loop().time()
    assert isinstance(await reader.report(), Heartbeat)
    assert asyncio.get_running_loop().time() - began == pytest.approx(HEARTBEAT)
    agent.close()


@pytest.mark.parametrize("stranger", [TcpAddress("10.73.0.9", Port(1)), TcpAddress("::1", Port(1)), UnixAddress("-")])
@without_waiting
async def test_only_the_gateway_is_heard(stranger: Any, caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()
    near, far = socket.socketpair()
    agent.machine.in_tunnel[PLACE](far, stranger)
    assert far.fileno() < 0
    assert near.recv(1) == b""
    near.close()
    assert "a host other than the relay" in caplog.text
    agent.close()


@without_waiting
async def test_other_addresses_are_followed() -> None:
    agent = Agent()
    other = ip_address("10.73.0.3")
    agent.server.listen([OWN, other], [GATEWAY])
    assert set(agent.machine.in_tunnel) == {PLACE, (other, 51822)}
    agent.server.listen([other], [GATEWAY])
    assert set(agent.machine.in_tunnel) == {(other, 51822)}
    agent.server.close()
    assert not agent.machine.in_tunnel


@without_waiting
async def test_without_a_port_nothing_is_served() -> None:
    agent = Agent(report_port=0)
    assert not agent.machine.in_tunnel


@without_waiting
async def test_an_address_that_cannot_be_bound_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ListenError("cannot listen", why="the test says so", fix="change the test")

    monkeypatch.setattr(MemoryMachine, "listen_in_tunnel", refuse)
    Agent()
    assert "cannot serve reports" in caplog.text


async def signalled(agent: Agent, name: str) -> tuple[bytes, dict[str, Any]]:
    reader = Reader(await agent.ask(f"POST /signal?name={name}"))
    status, body = await reader.line(), b""
    while line := await reader.line():
        body = line
    agent.close()
    answer: dict[str, Any] = json.loads(body)
    return status, answer


@without_waiting
async def test_a_signal_that_the_image_permits() -> None:
    agent = Agent(signals=("HUP",))
    status, answer = await signalled(agent, "HUP")
    assert b" 200 " in status
    assert answer == {"sent": True}
    assert agent.sent == [signal.SIGHUP]


@pytest.mark.parametrize("name", ["USR1", "KILL", "", "SIGHUP", "hup"])
@without_waiting
async def test_any_other_signal_is_refused(name: str) -> None:
    agent = Agent(signals=("HUP",))
    status, answer = await signalled(agent, name)
    assert b" 403 " in status
    assert answer == {"sent": False, "why": "the image permits HUP"}
    assert agent.sent == []


@without_waiting
async def test_by_default_no_signal_is_permitted() -> None:
    assert (await signalled(Agent(), "HUP"))[1]["why"] == "the image permits none"


@without_waiting
async def test_a_signal_to_nobody() -> None:
    agent = Agent(signals=("HUP",))
    agent.runs = False
    status, answer = await signalled(agent, "HUP")
    assert b" 409 " in status
    assert answer["why"] == "the application is not running"
