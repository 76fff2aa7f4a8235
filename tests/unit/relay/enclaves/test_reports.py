"""Reports read through a tunnel in memory: from an agent's own server, and from one that the test plays."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from wgvsock.enclave.application.reports import ReportServer
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.errors import RemoteProtocolError, TransportError
from wgvsock.relay.enclaves.application import ApplicationRecord
from wgvsock.relay.enclaves.reports import BURST, LINE_PRICE, RATE, SILENCE, ReportAddress, ReportReader
from wgvsock.telemetry.reports import ApplicationState, Hello, Phase, encode
from wgvsock.testing import without_waiting
from wgvsock.testing.machine import MemoryMachine

OWN, GATEWAY = ip_address("10.73.0.2"), ip_address("10.73.0.1")
ADDRESS = ReportAddress("wg0", OWN, 51822)
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Both:
    """An agent's reports and a relay that reads them."""

    def __init__(self, limit: int = 131_072, **settings: Any) -> None:
        self.enclave, self.machine = MemoryMachine(), MemoryMachine()
        self.machine.other_end = self.enclave
        self.shown: list[str] = []
        self.record = ApplicationRecord("wallet", self.shown.append)
        self.reader = ReportReader(self.machine, self.record, "wallet")
        self.settings = ApplicationSettings(**settings)
        self.limit = limit
        self.boot()
        self.stops = False
        self.reading = asyncio.ensure_future(self.reader.run(lambda: self.stops))

    def boot(self) -> None:
        """Another agent."""
        self.ring = Ring(self.limit)
        self.server = ReportServer(self.enclave, "wg0", self.settings, self.ring, lambda _: True)
        self.server.listen([OWN], [GATEWAY])

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.wait([self.reading])
        self.server.close()

    async def until(self, condition: Any) -> None:
        end = asyncio.get_running_loop().time() + 300
        while not condition():
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.01)


@without_waiting
async def test_ten_thousand_lines_across_lost_streams_arrive_in_order_and_once() -> None:
    both = Both(limit=16 << 20)
    both.reader.begin(ADDRESS, "i-1")
    for number in range(10_000):
        both.ring.write("stdout", b"line %d\n" % number, 0)
        if number % 2500 == 1000:
            await both.until(lambda: both.server.is_read)
            stream = both.server._stream
            assert stream is not None
            stream.close()  # in the middle of it all
    both.ring.change("exited", ApplicationState(Phase.ENDED, starts=1, code=3), 0)
    both.stops = True
    assert await both.reading == 3
    assert both.shown == [f"enclave=wallet stream=stdout line {number}" for number in range(10_000)]
    await both.until(lambda: both.ring.acknowledged == both.ring.last)
    both.server.close()


@without_waiting
async def test_the_end_is_acknowledged_at_once_and_ends_the_reading_only_where_it_should() -> None:
    both = Both()
    both.reader.begin(ADDRESS, "i-1")
    both.ring.change("exited", ApplicationState(Phase.ENDED, starts=1, code=3), 0)
    began = asyncio.get_running_loop().time()
    await both.server.delivered(60)
    assert asyncio.get_running_loop().time() - began < 1
    assert both.record.has_ended
    await asyncio.sleep(60)
    assert not both.reading.done()
    await both.close()


@without_waiting
async def test_output_is_acknowledged_after_a_moment() -> None:
    both = Both()
    both.reader.begin(ADDRESS, "i-1")
    both.ring.write("stdout", b"x\n", 0)
    await both.until(lambda: both.ring.acknowledged == 1)
    await both.close()


@without_waiting
async def test_the_enclaves_clock_is_compared_with_ours() -> None:
    both = Both()
    both.enclave.clock_error = 7_000_000_000
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.connected)
    assert both.record.clock_offset == pytest.approx(7, abs=1)
    both.enclave.clock_error = -100_000_000_000
    await asyncio.sleep(6)  # a heartbeat has it as well
    assert both.record.clock_offset == pytest.approx(-100, abs=1)
    await both.close()


@without_waiting
async def test_heartbeats_tell_the_processor_use_and_silence_ends_it() -> None:
    both = Both()
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.connected)
    hello = both.record.processor_snapshot()
    assert hello is not None
    assert (hello.times.processors, hello.percent) == (2, None)
    both.enclave.worked = 2_500
    await asyncio.sleep(6)  # a heartbeat comes after 5 s
    beat = both.record.processor_snapshot()
    assert beat is not None
    assert beat.percent == pytest.approx(50, rel=0.02)
    assert beat.agent_percent == pytest.approx(25, rel=0.02)
    both.server.close()
    await both.until(lambda: not both.record.connected)
    assert both.record.processor_snapshot() is None
    await both.close()


@without_waiting
async def test_a_machine_that_hides_its_processor_times() -> None:
    both = Both()
    both.enclave.worked = None
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.connected)
    await asyncio.sleep(6)
    assert both.record.connected
    assert both.record.processor_snapshot() is None
    await both.close()


@without_waiting
async def test_another_enclave_begins_anew_and_the_same_goes_on() -> None:
    both = Both()
    both.reader.begin(ADDRESS, "i-1")
    both.ring.write("stdout", b"one\n", 0)
    await both.until(lambda: both.shown)
    both.reader.end()
    await both.until(lambda: not both.server.is_read)
    assert not both.record.connected
    both.reader.begin(ADDRESS, "i-1")
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.connected)
    both.server.close()
    both.boot()
    both.ring.write("stdout", b"two\n", 0)
    both.reader.begin(ADDRESS, "i-2")
    await both.until(lambda: len(both.shown) == 2)
    assert both.shown[-1] == "enclave=wallet stream=stdout two"
    await both.close()


@without_waiting
async def test_an_enclave_without_reports_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    both = Both()
    both.server.close()
    assert both.record.ready() is False
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.asked)
    assert both.record.ready() is None
    await asyncio.sleep(300)
    assert [record.getMessage() for record in caplog.records].count("no reports from the application") <= 1
    await both.close()


@without_waiting
async def test_one_lost_attempt_says_nothing_about_readiness() -> None:
    both = Both()
    listening = both.enclave.in_tunnel.pop((OWN, 51822))
    both.reader.begin(ADDRESS, "i-1")
    await asyncio.sleep(0.1)
    assert both.record.ready() is False  # not yet: nobody has answered
    both.enclave.in_tunnel[OWN, 51822] = listening
    await both.until(lambda: both.record.connected)
    assert both.record.ready() is None
    await both.close()


@without_waiting
async def test_without_a_port_nobody_is_asked() -> None:
    both = Both()
    both.reader.begin(ReportAddress("wg0", OWN, 0), "i-1")
    await asyncio.sleep(10)
    assert both.record.ready() is None
    assert not both.server.was_read
    with pytest.raises(TransportError, match="no tunnel"):
        await both.reader.send_signal("HUP")
    await both.close()


@without_waiting
async def test_a_burst_is_read_at_a_limited_rate_and_the_loss_is_counted() -> None:
    both = Both()
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.server.is_read)
    line = b"%07d" + b"x" * 91 + b"\n"
    began = asyncio.get_running_loop().time()
    for begin in range(0, 100_000, 500):  # 10 MB, in pieces as a pipe gives them
        both.ring.write("stdout", b"".join(line % number for number in range(begin, begin + 500)), 0)
        await asyncio.sleep(0.001)
    both.ring.change("exited", ApplicationState(Phase.ENDED, starts=1, code=0), 0)
    await both.until(lambda: both.record.has_ended)
    snapshot = both.record.snapshot()
    assert snapshot is not None
    seen = [int(text[-98:-91]) for text in both.shown if "stream=stdout" in text and len(text) > 120]
    assert seen == sorted(set(seen))
    assert snapshot.lost_lines > 0
    whole = sum("stream=stdout" in text for text in both.shown)
    assert 100_000 <= whole + snapshot.lost_lines <= 100_000 + 2 * sum("stream=lost" in text for text in both.shown)
    spent = asyncio.get_running_loop().time() - began
    assert whole * (99 + LINE_PRICE) <= BURST + RATE * (spent + 1)
    assert both.ring._size <= 131_072
    await both.close()


class Played:
    """An agent that the test plays: what it sends to each client."""

    def __init__(self, both: Both, answer: bytes) -> None:
        both.server.close()
        self.answer = answer
        self.socks: list[socket.socket] = []
        both.enclave.in_tunnel[OWN, 51822] = self._accepted

    def _accepted(self, sock: socket.socket, _address: object) -> None:
        sock.send(self.answer)
        self.socks.append(sock)

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * 8192,
        HEAD + b"no report\n",
        HEAD + encode(Hello("", 0, ApplicationState())) + b"x" * 140_000,
        HEAD + b"<html>\n",
    ],
)
@without_waiting
async def test_what_is_no_agent_is_given_up_and_asked_again(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    both = Both()
    played = Played(both, answer)
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: len(played.socks) > 1)
    assert not both.record.connected
    assert "no reports from the application" in caplog.text or both.record.source == ""
    await both.close()
    played.close()


@without_waiting
async def test_an_agent_that_falls_silent_is_asked_again() -> None:
    both = Both()
    played = Played(both, HEAD + encode(Hello("a", 0, ApplicationState())))
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: played.socks)
    began = asyncio.get_running_loop().time()
    await both.until(lambda: len(played.socks) > 1)
    assert asyncio.get_running_loop().time() - began >= SILENCE
    await both.close()
    played.close()


@without_waiting
async def test_one_that_answers_nothing_is_given_up() -> None:
    both = Both()
    played = Played(both, b"")
    both.reader.begin(ADDRESS, "i-1")
    await both.until(lambda: both.record.asked)
    assert len(played.socks) > 1
    assert both.record.ready() is None
    await both.close()
    played.close()


@pytest.mark.parametrize(("name", "sent"), [("HUP", True), ("TERM", False), ("a&b=c", False)])
@without_waiting
async def test_signals(name: str, sent: bool) -> None:
    both = Both(signals=("HUP",))
    both.reader.begin(ADDRESS, "i-1")
    answer = await both.reader.send_signal(name)
    assert answer == (sent, "" if sent else "the image permits HUP")
    await both.close()


@without_waiting
async def test_an_answer_that_is_none() -> None:
    both = Both()
    played = Played(both, HEAD + b"[]")
    both.reader.begin(ADDRESS, "i-1")
    for answer in (HEAD + b"[]", HEAD + b"x", HEAD + b'{"sent":1}', HEAD + b"[" * 4000):
        played.answer = answer
        with pytest.raises(RemoteProtocolError):
            await both.reader.send_signal("HUP")
    await both.close()
    played.close()
