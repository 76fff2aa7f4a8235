from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Self

import dns.flags
import dns.message
import pytest
from dns.rcode import Rcode

from tests.unit.dns.queries import SERVER, Judge, forwarding, query, reasons, records, reply, says, silent
from wgvsock.dns import forwarder as module
from wgvsock.dns.forwarder import Forwarder
from wgvsock.dns.messages import MAX_QUERY
from wgvsock.dns.streams import IDLE, read_message, send_message
from wgvsock.dns.upstream import PATIENCE
from wgvsock.errors import WgvsockError
from wgvsock.testing import without_waiting
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.dns import LOOPBACK, MemoryDnsSockets
from wgvsock.transports.errors import ListenError

WWW = "www.lab.test. 60 A 198.51.100.10"
GATEWAY = ip_address("10.73.0.1")


def code(wire: bytes | None) -> Rcode:
    assert wire is not None
    return dns.message.from_wire(wire).rcode()


def ports(forwarder: Forwarder) -> tuple[int, int]:
    sockets = forwarder._sockets
    assert isinstance(sockets, MemoryDnsSockets)
    return sockets.listening[GATEWAY]


class Client:
    """The enclave's resolver over UDP."""

    def __init__(self, forwarder: Forwarder, address: str = LOOPBACK) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((address, 0))
        self.socket.connect((LOOPBACK, ports(forwarder)[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def ask(self, wire: bytes) -> bytes:
        self.socket.send(wire)
        return await self.hear()

    async def hear(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65535)


async def connect(forwarder: Forwarder, address: str = LOOPBACK) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(sock, (LOOPBACK, ports(forwarder)[1]))
    return sock


# Without a judge.


@without_waiting
async def test_a_query_and_its_answer_pass_as_they_are() -> None:
    wire = query("wWw.lab.test", "TYPE65280", use_edns=0, payload=4096, want_dnssec=True)
    with forwarding(lambda wire, _: [reply(wire, r"www.lab.test. 5 TYPE65280 \# 3 010203")]) as (forwarder, servers):
        with Client(forwarder) as client:
            answer = await client.ask(wire)
        ((sent, over_tcp),) = servers[0].asked
        assert (sent[2:], over_tcp) == (wire[2:], False)
        assert answer == wire[:2] + reply(wire, r"www.lab.test. 5 TYPE65280 \# 3 010203")[2:]
        assert forwarder.snapshot().queries == {"answered": 1}


@pytest.mark.parametrize("rcode", [Rcode.NXDOMAIN, Rcode.SERVFAIL, Rcode.REFUSED, Rcode.FORMERR])
@without_waiting
async def test_a_code_passes(rcode: Rcode) -> None:
    with forwarding(says(rcode=rcode)) as (forwarder, _):
        assert code(await forwarder.answer(query(), over_tcp=False)) == rcode


@without_waiting
async def test_many_at_once() -> None:
    with forwarding(says(WWW)) as (forwarder, _), Client(forwarder) as client:
        wires = {wire[:2]: wire for wire in (query(f"n{number}.lab.test") for number in range(150))}
        for wire in wires.values():
            client.socket.send(wire)
        got = [await client.hear() for _ in wires]
        assert {wire[:2] for wire in got} == wires.keys()


@without_waiting
async def test_a_long_answer_passes_over_tcp_and_is_cut_for_a_datagram() -> None:
    lines = [f"www.lab.test. 60 TXT {'x' * 200}{number}" for number in range(20)]
    with forwarding(says(*lines)) as (forwarder, servers):
        with Client(forwarder) as client:
            cut = dns.message.from_wire(await client.ask(query(kind="TXT", use_edns=0, payload=1232)))
        assert cut.flags & dns.flags.TC
        assert not cut.answer
        with await connect(forwarder) as sock:
            await send_message(sock, query(kind="TXT"))
            answer = await read_message(sock)
        assert len(records(answer)) == 20
        assert len(answer) > 4096
        assert [over_tcp for _, over_tcp in servers[0].asked] == [False, True]


@without_waiting
async def test_what_fits_into_the_clients_datagram_is_not_cut() -> None:
    lines = [f"www.lab.test. 60 TXT {'x' * 200}{number}" for number in range(18)]
    with forwarding(says(*lines)) as (forwarder, _), Client(forwarder) as client:
        assert len(records(await client.ask(query(kind="TXT", use_edns=0, payload=4096)))) == 18


@pytest.mark.parametrize("kind", ["ANY", "AXFR", "IXFR"])
@without_waiting
async def test_zone_transfers_and_any_are_refused(kind: str) -> None:
    with forwarding(says(WWW)) as (forwarder, servers):
        wire = query("lab.test", "A", use_edns=0)
        number = {"ANY": 255, "AXFR": 252, "IXFR": 251}[kind]
        wire = wire.replace(b"\4test\0\0\1\0\1", b"\4test\0" + bytes([0, number, 0, 1]))
        told = await forwarder.answer(wire, over_tcp=True)
        assert code(told) == Rcode.REFUSED
        assert told is not None
        assert reasons(told) == [21]
        assert not servers[0].asked
        assert forwarder.counts == {"refused_type": 1}


@without_waiting
async def test_nobody_answers() -> None:
    with forwarding(silent) as (forwarder, _):
        begin = asyncio.get_running_loop().time()
        told = await forwarder.answer(query(use_edns=0), over_tcp=False)
        assert asyncio.get_running_loop().time() - begin == pytest.approx(PATIENCE)
        assert code(told) == Rcode.SERVFAIL
        assert told is not None
        assert reasons(told) == [22]
        forwarder.servers = ()
        told = await forwarder.answer(query(use_edns=0), over_tcp=False)
        assert told is not None
        assert reasons(told) == [23]
        assert forwarder.snapshot().queries == {"failed": 2}


@without_waiting
async def test_what_is_malformed_is_told_so_or_dropped() -> None:
    with forwarding(says(WWW)) as (forwarder, servers), Client(forwarder) as client:
        client.socket.send(b"")
        client.socket.send(reply(query()))
        assert code(await client.ask(query() + b"\0")) == Rcode.FORMERR
        assert code(await client.ask(query() + bytes(MAX_QUERY))) == Rcode.FORMERR
        assert not servers[0].asked
        assert forwarder.counts == {"malformed": 4}


@without_waiting
async def test_no_more_queries_are_under_way_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUERIES", 3)
    with forwarding(silent) as (forwarder, servers), Client(forwarder) as client:
        for number in range(5):
            client.socket.send(query(f"n{number}.lab.test"))
        with await connect(forwarder) as sock:
            await send_message(sock, query())
            await asyncio.sleep(0.5)
            assert forwarder.snapshot().in_flight == 3
            assert len(servers[0].asked) == 3
            assert forwarder.counts["dropped"] == 3
            await asyncio.sleep(PATIENCE)
            assert forwarder.snapshot().in_flight == 0


@without_waiting
async def test_streams_have_places_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUERIES", 1)
    with forwarding(silent) as (forwarder, _), await connect(forwarder) as sock:
        await send_message(sock, query())
        await asyncio.sleep(0.5)
        assert forwarder.snapshot().in_flight == 1
        await send_message(sock, query())
        await asyncio.sleep(0.5)
        assert forwarder.counts == {"dropped": 1}


@without_waiting
async def test_a_new_connection_takes_the_oldest_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    with forwarding(says(WWW)) as (forwarder, _):
        clients = []
        for _ in range(3):
            clients.append(await connect(forwarder))
            await asyncio.sleep(0.1)
        begin = asyncio.get_running_loop().time()
        assert await asyncio.get_running_loop().sock_recv(clients[0], 1) == b""
        assert asyncio.get_running_loop().time() - begin < IDLE / 2
        for client in clients[1:]:
            await send_message(client, query())
            assert records(await read_message(client)) == ["A 198.51.100.10"]
        for client in clients:
            client.close()


@without_waiting
async def test_nobody_else_is_answered() -> None:
    with forwarding(says(WWW)) as (forwarder, servers):
        for address in ("127.0.0.2", LOOPBACK):
            with Client(forwarder, address) as client:
                client.socket.send(query())
            with await connect(forwarder, address) as sock:
                await send_message(sock, query())
                await asyncio.sleep(0.1)
                assert (sock.recv(1) == b"") is (address != LOOPBACK)
        assert len(servers[0].asked) == 2
        assert forwarder.counts == {"answered": 2}


@without_waiting
async def test_whoever_has_gone_gets_no_answer() -> None:
    with forwarding(silent) as (forwarder, servers), await connect(forwarder) as stream:
        await send_message(stream, query())
        with Client(forwarder) as client:
            client.socket.send(query())
        await asyncio.sleep(0.5)
        stream.close()
        for wire, over_tcp in list(servers[0].asked):
            if not over_tcp:
                servers[0].send(reply(wire, WWW), servers[0].clients[0])
        await asyncio.sleep(PATIENCE)
        with Client(forwarder) as client:
            assert code(await client.ask(query())) == Rcode.SERVFAIL


@without_waiting
async def test_closed_it_answers_nothing_and_can_be_closed_again() -> None:
    with forwarding(silent) as (forwarder, _), await connect(forwarder) as stream:
        with Client(forwarder) as client:
            client.socket.send(query())
        await send_message(stream, query())
        await asyncio.sleep(0.5)
        assert forwarder.snapshot().in_flight == 2
        forwarder.close()
        forwarder.close()
        assert await asyncio.get_running_loop().sock_recv(stream, 1) == b""
        assert forwarder.snapshot().in_flight == 0
        assert forwarder.snapshot().listen == ()


@without_waiting
async def test_an_address_that_cannot_be_bound_leaves_nothing_bound() -> None:
    class Second(MemoryDnsSockets):
        def listen(self, address: object, interface: str) -> tuple[socket.socket, socket.socket]:
            self.refuses = bool(self.listening)
            return super().listen(ip_address(str(address)), interface)

    forwarder = Forwarder(Second(), SeededRandom("forwarder"))
    with pytest.raises(ListenError):
        forwarder.open([GATEWAY, ip_address("fd73::1")], "wg0", [])
    forwarder.close()  # an open socket would be a ResourceWarning, which is an error here
    assert forwarder.snapshot().listen == ()


@without_waiting
async def test_it_says_whom_it_asks() -> None:
    with forwarding(silent, says(WWW)) as (forwarder, _):
        await forwarder.answer(query(), over_tcp=False)
        snapshot = forwarder.snapshot()
        assert snapshot.listen == (GATEWAY,)
        assert snapshot.servers == (ip_address(SERVER), ip_address("10.96.0.11"))
        assert snapshot.silent == (ip_address(SERVER),)
        assert snapshot.upstream == {"timeouts": 1}


# With a judge.


@without_waiting
async def test_a_name_that_is_not_allowed_is_asked_of_nobody() -> None:
    with forwarding(says(WWW), judge=Judge("www.lab.test")) as (forwarder, servers):
        told = await forwarder.answer(query("other.lab.test", use_edns=0), over_tcp=False)
        assert told is not None
        assert code(told) == Rcode.REFUSED
        assert reasons(told) == [18]
        assert not servers[0].asked
        assert forwarder.counts == {"refused_name": 1}


@without_waiting
async def test_a_name_that_reads_in_two_ways_is_not_allowed_whatever_the_judge_says() -> None:
    class Lenient(Judge):
        def allows(self, name: str) -> bool:
            return True

    with forwarding(says(WWW), judge=Lenient()) as (forwarder, servers):
        wire = query("x.test").replace(b"\1x\4test\0", b"\7evil.ok\4test\0")
        assert code(await forwarder.answer(wire, over_tcp=False)) == Rcode.REFUSED
        assert not servers[0].asked


@without_waiting
async def test_the_rule_is_in_force_before_the_answer_leaves() -> None:
    judge = Judge("www.lab.test")
    with forwarding(says(WWW, "www.lab.test. 5 AAAA 2001:db8::1"), judge=judge) as (forwarder, _):
        pinning, pinned = asyncio.Event(), asyncio.Event()
        pin = judge.pin

        async def held(name: str, found: object) -> frozenset[object]:
            pinning.set()
            await pinned.wait()
            return await pin(name, found)  # type: ignore[arg-type]

        judge.pin = held  # type: ignore[method-assign, assignment]
        with Client(forwarder) as client:
            client.socket.send(query("WWW.lab.test"))
            await pinning.wait()
            await asyncio.sleep(1)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            pinned.set()
            assert records(await client.hear()) == ["A 198.51.100.10", "AAAA 2001:db8::1"]
        assert judge.pinned == [("www.lab.test", {"198.51.100.10": 60, "2001:db8::1": 5})]


@without_waiting
async def test_each_answer_is_pinned_anew_and_passes_as_it_is() -> None:
    judge = Judge("www.lab.test")
    with forwarding(says(WWW), judge=judge) as (forwarder, _):
        wire = query()
        for _ in range(3):
            assert await forwarder.answer(wire, over_tcp=False) == reply(wire, WWW)
        assert len(judge.pinned) == 3


@without_waiting
async def test_the_asked_name_decides_wherever_aliases_lead() -> None:
    judge = Judge("www.lab.test")
    lines = ("www.lab.test. 60 CNAME edge.cdn.test.", "edge.cdn.test. 2 A 198.51.100.10")
    with forwarding(says(*lines), judge=judge) as (forwarder, _):
        await forwarder.answer(query(), over_tcp=False)
        assert judge.pinned == [("www.lab.test", {"198.51.100.10": 2})]
        assert code(await forwarder.answer(query("edge.cdn.test"), over_tcp=False)) == Rcode.REFUSED


@without_waiting
async def test_hints_are_pinned_as_addresses_are() -> None:
    judge = Judge("www.lab.test")
    with forwarding(says("www.lab.test. 7 HTTPS 1 . ipv4hint=198.51.100.10"), judge=judge) as (forwarder, _):
        await forwarder.answer(query(kind="HTTPS"), over_tcp=False)
        assert judge.pinned == [("www.lab.test", {"198.51.100.10": 7})]


@without_waiting
async def test_an_answer_without_addresses_passes() -> None:
    judge = Judge("www.lab.test")
    with forwarding(says("www.lab.test. 7 TXT x"), judge=judge) as (forwarder, _):
        assert code(await forwarder.answer(query(kind="TXT"), over_tcp=False)) == Rcode.NOERROR
        assert judge.pinned == []


@pytest.mark.parametrize("address", ["A 169.254.169.254", "A 10.73.0.1", "AAAA ::ffff:169.254.169.254"])
@without_waiting
async def test_an_allowed_name_that_leads_into_a_closed_network_is_refused(address: str) -> None:
    judge = Judge("www.lab.test", closed=[address.split()[1]])
    with forwarding(says(f"www.lab.test. 7 {address}"), judge=judge) as (forwarder, _):
        told = await forwarder.answer(query(use_edns=0), over_tcp=False)
        assert told is not None
        assert code(told) == Rcode.REFUSED
        assert reasons(told) == [18]
        assert records(told) == []
        assert forwarder.counts == {"refused_address": 1}


@without_waiting
async def test_of_several_addresses_only_the_open_ones_are_told() -> None:
    judge = Judge("www.lab.test", closed=["10.73.0.1"])
    with forwarding(says(WWW, "www.lab.test. 60 A 10.73.0.1"), judge=judge) as (forwarder, _):
        told = await forwarder.answer(query(), over_tcp=False)
        assert told is not None
        assert records(told) == ["A 198.51.100.10"]
        assert forwarder.counts == {"refused_address": 1}


@without_waiting
async def test_no_answer_is_kept_for_longer_than_its_pin() -> None:
    judge = Judge("www.lab.test")
    judge.longest = 3600.0
    lines = ("www.lab.test. 86400 CNAME edge.cdn.test.", "edge.cdn.test. 7200 A 198.51.100.10")
    with forwarding(says(*lines), judge=judge) as (forwarder, _):
        told = await forwarder.answer(query(), over_tcp=False)
        assert told is not None
        assert [rrset.ttl for rrset in dns.message.from_wire(told).answer] == [3600, 3600]
        assert judge.pinned == [("www.lab.test", {"198.51.100.10": 7200})]
        assert forwarder.counts == {"answered": 1}


@without_waiting
async def test_an_answer_that_cannot_be_pinned_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    judge = Judge("www.lab.test")
    judge.fails = WgvsockError("cannot change the packet filter")
    with forwarding(says(WWW), judge=judge) as (forwarder, _):
        told = await forwarder.answer(query(), over_tcp=False)
        assert told is not None
        assert code(told) == Rcode.SERVFAIL
        assert records(told) == []
        assert "cannot change the packet filter" in caplog.text


@without_waiting
async def test_an_error_without_the_question_passes_a_judge() -> None:
    def bare(wire: bytes, _: bool) -> Iterable[bytes]:
        return [wire[:2] + b"\x81\x82" + bytes(8)]

    with forwarding(bare, judge=Judge("www.lab.test")) as (forwarder, _):
        assert code(await forwarder.answer(query(), over_tcp=False)) == Rcode.SERVFAIL
        assert forwarder.counts == {"answered": 1}


@without_waiting
async def test_an_answer_that_was_cut_within_a_record_is_cut_before_it() -> None:
    def cut(wire: bytes, _: bool) -> Iterable[bytes]:
        whole = reply(wire, WWW, "www.lab.test. 60 A 198.51.100.11")
        return [whole[:2] + bytes([whole[2] | 2]) + whole[3:-7]]

    with forwarding(cut, judge=Judge("www.lab.test")) as (forwarder, _):
        told = await forwarder.answer(query(), over_tcp=False)
        assert told is not None
        message = dns.message.from_wire(told)
        assert message.flags & dns.flags.TC
        assert message.rcode() == Rcode.NOERROR
        assert not message.answer


@without_waiting
async def test_an_answer_that_cannot_be_read_is_not_told() -> None:
    def broken(wire: bytes, _: bool) -> Iterable[bytes]:
        return [reply(wire, WWW)[:-1]]

    with forwarding(broken, judge=Judge("www.lab.test")) as (forwarder, _):
        assert code(await forwarder.answer(query(), over_tcp=False)) == Rcode.SERVFAIL
