from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Self

import pytest
from dns.rcode import Rcode

from tests.unit.dns.queries import OTHER, SERVER, query, records, reply, says, silent
from wgvsock.dns.messages import read_query
from wgvsock.dns.upstream import MAX_WRONG, PATIENCE, STEP, SUSPICION, NoAnswerError, Upstreams
from wgvsock.testing import without_waiting
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.dns import MemoryDnsSockets, Script, ScriptedNameServer

WWW = "www.lab.test. 60 A 198.51.100.10"
ELSE = "www.lab.test. 60 A 198.51.100.99"


class Servers:
    """Name servers at 10.96.0.10 and up, and a client."""

    def __init__(self, *scripts: Script | None) -> None:
        sockets = MemoryDnsSockets()
        self.upstreams = Upstreams(sockets, SeededRandom("upstream"))
        self.upstreams.servers = tuple(ip_address(f"10.96.0.{10 + number}") for number in range(len(scripts)))
        pairs = zip(self.upstreams.servers, scripts, strict=True)
        self.servers = {str(at): ScriptedNameServer(sockets, str(at), script) for at, script in pairs if script}

    def __enter__(self) -> Self:
        for server in self.servers.values():
            server.open()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.close()

    async def ask(self, wire: bytes | None = None, *, over_tcp: bool = False) -> bytes:
        return await self.upstreams.ask(read_query(wire or query()), over_tcp=over_tcp)

    def asked(self, address: str) -> int:
        return len(self.servers[address].asked)


@pytest.mark.parametrize("over_tcp", [False, True])
@without_waiting
async def test_the_answer_of_the_first_server_comes_under_the_clients_number(over_tcp: bool) -> None:
    with Servers(says(WWW), says(ELSE)) as servers:
        wire = query("wWw.lab.test", use_edns=0, payload=4096)
        answer = await servers.ask(wire, over_tcp=over_tcp)
        assert answer[:2] == wire[:2]
        assert records(answer) == ["A 198.51.100.10"]
        ((sent, was_tcp),) = servers.servers[SERVER].asked
        assert sent[2:] == wire[2:]
        assert was_tcp is over_tcp
        assert not servers.asked(OTHER)


@without_waiting
async def test_each_query_has_a_number_and_a_port_of_its_own() -> None:
    with Servers(says(WWW)) as servers:
        wire = query()
        await asyncio.gather(*(servers.ask(wire) for _ in range(20)))
        (server,) = servers.servers.values()
        assert len({sent[:2] for sent, _ in server.asked}) == 20
        assert len(set(server.clients)) == 20
        assert server.asked[0][0][:2] != wire[:2]


@without_waiting
async def test_a_silent_server_costs_one_step_and_then_nothing_for_a_while() -> None:
    with Servers(silent, says(ELSE)) as servers:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        assert records(await servers.ask()) == ["A 198.51.100.99"]
        assert loop.time() - begin == pytest.approx(STEP)
        assert list(servers.upstreams.silent) == [ip_address(SERVER)]
        assert servers.upstreams.counts == {"timeouts": 1}
        begin = loop.time()
        await servers.ask()
        assert loop.time() == begin
        assert servers.asked(SERVER) == 1
        await asyncio.sleep(SUSPICION)
        assert not servers.upstreams.silent
        await servers.ask()
        assert servers.asked(SERVER) == 2


@without_waiting
async def test_a_slow_servers_answer_still_counts_and_clears_it() -> None:
    held: list[bytes] = []

    def slow(wire: bytes, _: bool) -> Iterable[bytes]:
        held.append(wire)
        return []

    with Servers(slow, silent) as servers:
        asking = asyncio.ensure_future(servers.ask())
        await asyncio.sleep(STEP * 2)
        assert servers.asked(OTHER) == 1
        assert ip_address(SERVER) in servers.upstreams.silent
        server = servers.servers[SERVER]
        server.send(reply(held[0], WWW), server.clients[0])
        assert records(await asking) == ["A 198.51.100.10"]
        assert servers.upstreams.silent == ()


@without_waiting
async def test_silence_everywhere_ends() -> None:
    with Servers(silent, silent) as servers:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(NoAnswerError) as caught:
            await servers.ask()
        assert asyncio.get_running_loop().time() - begin == pytest.approx(PATIENCE)
        assert not caught.value.unreachable
        assert servers.upstreams.silent == servers.upstreams.servers
        assert servers.upstreams.counts == {"timeouts": 2}  # each once


@pytest.mark.parametrize("over_tcp", [False, True])
@without_waiting
async def test_a_server_that_cannot_be_reached_is_passed_over_at_once(over_tcp: bool) -> None:
    with Servers(None, says(ELSE)) as servers:
        begin = asyncio.get_running_loop().time()
        assert records(await servers.ask(over_tcp=over_tcp)) == ["A 198.51.100.99"]
        assert asyncio.get_running_loop().time() == begin
        assert servers.upstreams.counts == {"errors": 1}


@without_waiting
async def test_a_port_on_which_nobody_listens_is_passed_over_at_once() -> None:
    with Servers(says(WWW), says(ELSE)) as servers:
        servers.servers[SERVER].close()
        servers.servers = {OTHER: servers.servers[OTHER]}
        begin = asyncio.get_running_loop().time()
        assert records(await servers.ask()) == ["A 198.51.100.99"]
        assert asyncio.get_running_loop().time() == begin


@pytest.mark.parametrize("over_tcp", [False, True])
@without_waiting
async def test_nobody_there_at_all(over_tcp: bool) -> None:
    for servers in (Servers(), Servers(None)):
        with servers, pytest.raises(NoAnswerError) as caught:
            await servers.ask(over_tcp=over_tcp)
        assert caught.value.unreachable


@pytest.mark.parametrize("code", [Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED])
@without_waiting
async def test_one_that_does_not_know_is_followed_by_the_next(code: Rcode) -> None:
    with Servers(says(rcode=code), says(ELSE)) as servers:
        assert records(await servers.ask()) == ["A 198.51.100.99"]


@without_waiting
async def test_if_none_knows_the_last_word_passes() -> None:
    with Servers(says(rcode=Rcode.REFUSED), says(rcode=Rcode.SERVFAIL)) as servers:
        answer = await servers.ask()
        assert answer[3] & 0xF == Rcode.SERVFAIL


@without_waiting
async def test_a_name_that_is_not_there_is_an_answer() -> None:
    with Servers(says(rcode=Rcode.NXDOMAIN), says(ELSE)) as servers:
        assert (await servers.ask())[3] & 0xF == Rcode.NXDOMAIN
        assert not servers.asked(OTHER)


def wrong_number(wire: bytes) -> bytes:
    return bytes([wire[0] ^ 1]) + reply(wire, ELSE)[1:]


def wrong_question(wire: bytes) -> bytes:
    return wire[:2] + reply(query("else.lab.test"), ELSE)[2:]


def echo(wire: bytes) -> bytes:
    return wire


@pytest.mark.parametrize("wrong", [wrong_number, wrong_question, echo])
@without_waiting
async def test_what_is_no_answer_is_not_taken_for_one(wrong: Callable[[bytes], bytes]) -> None:
    with Servers(lambda wire, _: [wrong(wire), reply(wire, WWW)], says(ELSE)) as servers:
        assert records(await servers.ask()) == ["A 198.51.100.10"]
        assert servers.upstreams.counts == {"wrong": 1}


@without_waiting
async def test_another_address_is_not_heard() -> None:
    with Servers(silent, says(ELSE)) as servers:
        asking = asyncio.ensure_future(servers.ask())
        await asyncio.sleep(STEP / 2)
        first, stranger = servers.servers[SERVER], servers.servers[OTHER]
        stranger.send(reply(first.asked[0][0], WWW), first.clients[0])
        assert records(await asking) == ["A 198.51.100.99"]
        assert "wrong" not in servers.upstreams.counts


@without_waiting
async def test_somebody_who_guesses_numbers_ends_the_attempt() -> None:
    with Servers(lambda wire, _: [wrong_number(wire)] * MAX_WRONG, says(ELSE)) as servers:
        begin = asyncio.get_running_loop().time()
        assert records(await servers.ask()) == ["A 198.51.100.99"]
        assert asyncio.get_running_loop().time() == begin
        assert servers.upstreams.counts == {"wrong": MAX_WRONG, "errors": 1}


@without_waiting
async def test_a_wrong_answer_over_tcp_is_none() -> None:
    with Servers(lambda wire, _: [wrong_number(wire)], says(ELSE)) as servers:
        assert records(await servers.ask(over_tcp=True)) == ["A 198.51.100.99"]
        assert servers.upstreams.counts == {"wrong": 1}


@without_waiting
async def test_a_silent_server_over_tcp_is_followed_by_the_next_and_let_go() -> None:
    with Servers(silent, says(ELSE)) as servers:
        assert records(await servers.ask(over_tcp=True)) == ["A 198.51.100.99"]
        await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.cancelling()]


@without_waiting
async def test_a_truncated_answer_passes() -> None:
    def cut(wire: bytes, _: bool) -> Iterable[bytes]:
        answer = reply(wire)
        return [answer[:2] + bytes([answer[2] | 2]) + answer[3:]]

    with Servers(cut) as servers:
        answer = await servers.ask()
        assert answer[2] & 2
        assert [over_tcp for _, over_tcp in servers.servers[SERVER].asked] == [False]


@without_waiting
async def test_no_more_servers_are_asked_than_the_c_library_would() -> None:
    with Servers(*[says(rcode=Rcode.SERVFAIL)] * 3, says(WWW)) as servers:
        assert (await servers.ask())[3] & 0xF == Rcode.SERVFAIL


@without_waiting
async def test_a_cancelled_query_leaves_no_socket_behind() -> None:
    with Servers(silent) as servers:
        asking = asyncio.ensure_future(servers.ask())
        await asyncio.sleep(STEP / 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking  # an open socket would be a ResourceWarning, which is an error here


@without_waiting
async def test_a_datagram_whose_checksum_is_wrong_is_none() -> None:
    """The socket was readable, but has nothing to read (select(2), BUGS)."""
    loop = asyncio.get_running_loop()
    readers: list[tuple[Callable[..., object], tuple[object, ...]]] = []
    add_reader = loop.add_reader

    def noted(fd: object, callback: Callable[..., object], *args: object) -> None:
        readers.append((callback, args))
        add_reader(fd, callback, *args)  # type: ignore[arg-type]

    with Servers(silent) as servers:
        loop.add_reader = noted  # type: ignore[method-assign]
        asking = asyncio.ensure_future(servers.ask())
        await asyncio.sleep(STEP / 2)
        ((callback, args),) = readers
        callback(*args)
        server = servers.servers[SERVER]
        server.send(reply(server.asked[0][0], WWW), server.clients[0])
        assert records(await asking) == ["A 198.51.100.10"]
        assert not servers.upstreams.counts
