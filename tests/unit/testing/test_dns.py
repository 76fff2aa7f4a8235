"""The sockets in memory and the scripted name server behave as the forwarder expects of real ones."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from wgvsock.dns.streams import read_message, send_message
from wgvsock.testing import without_waiting
from wgvsock.testing.dns import MemoryDnsSockets, ScriptedNameServer
from wgvsock.transports.errors import ConnectError, ListenError

SERVER = ip_address("10.96.0.10")


@without_waiting
async def test_a_server_answers_both_ways_what_its_script_says() -> None:
    sockets, loop = MemoryDnsSockets(), asyncio.get_running_loop()
    server = ScriptedNameServer(sockets, str(SERVER), lambda wire, over_tcp: [wire[::-1], b"t" if over_tcp else b"u"])
    server.open()
    with sockets.to_server(SERVER) as datagrams:
        datagrams.send(b"ab")
        assert [await loop.sock_recv(datagrams, 10) for _ in range(2)] == [b"ba", b"u"]
        assert server.clients == [datagrams.getsockname()[1]]
    with await sockets.stream_to_server(SERVER, deadline=loop.time() + 60) as stream:
        await send_message(stream, b"cd")
        assert [await read_message(stream) for _ in range(2)] == [b"dc", b"t"]
    assert server.asked == [(b"ab", False), (b"cd", True)]
    server.close()


@without_waiting
async def test_what_is_not_there_cannot_be_reached() -> None:
    sockets = MemoryDnsSockets()
    with pytest.raises(OSError, match="unreachable"):
        sockets.to_server(SERVER)
    with pytest.raises(ConnectError):
        await sockets.stream_to_server(SERVER, deadline=0)


def test_it_listens_and_says_where_or_refuses() -> None:
    sockets = MemoryDnsSockets()
    for sock, port in zip(sockets.listen(SERVER, "wg0"), sockets.listening[SERVER], strict=True):
        assert sock.getsockname()[1] == port
        sock.close()
    sockets.refuses = True
    with pytest.raises(ListenError):
        sockets.listen(SERVER, "wg0")
