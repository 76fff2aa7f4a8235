"""The machine in memory provides what the services need of the real one."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from wgvsock.addresses import StreamAddress
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ConnectError


def test_each_question_for_connections_has_its_answer_and_the_last_one_stays() -> None:
    machine = MemoryMachine()
    machine.connections_left = [2, 0]
    assert [machine.connections(()) for _ in range(3)] == [2, 0, 0]


def test_tables_are_kept_and_taken_away_by_name() -> None:
    machine = MemoryMachine()

    async def nft(text: str) -> None:
        await machine.run_tool(["nft", "-f", "-"], text)

    async def use() -> str:
        for name in ("a", "b"):
            await nft(f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n chain x {{ }}\n}}\n")
        await nft("table inet a\ndelete table inet a\n")
        return (await machine.run_tool(["nft", "list", "tables", "inet"], "")).output

    assert asyncio.run(use()) == "table inet b\n"


def test_ports_answer_until_the_test_says_otherwise() -> None:
    machine = MemoryMachine()
    assert asyncio.run(machine.accepts(ip_address("10.0.0.1"), 1))
    machine.listening = False
    assert not asyncio.run(machine.accepts(ip_address("10.0.0.1"), 1))


def test_a_tun_that_is_opened_is_an_interface() -> None:
    machine = MemoryMachine()
    tun = machine.open_tun("wg7", packet_headroom=10)
    assert machine.tuns == [tun]
    assert "wg7" in machine.kernel.mtus
    tun.close()


def test_what_listens_in_the_tunnel_is_reached_from_the_other_end_alone() -> None:
    enclave, relay = MemoryMachine(), MemoryMachine()
    own = ip_address("10.73.0.2")

    async def body() -> None:
        accepted: list[tuple[socket.socket, StreamAddress]] = []
        listening = enclave.listen_in_tunnel("wg0", own, 51822, lambda *connection: accepted.append(connection))
        with pytest.raises(ConnectError):
            await relay.connect_in_tunnel("wg0", own, 51822, seconds=1)
        relay.other_end = enclave
        with await relay.connect_in_tunnel("wg0", own, 51822, seconds=1) as near:
            near.send(b"hello")
            ((far, address),) = accepted
            assert far.recv(16) == b"hello"
            assert str(address) == "tcp:10.73.0.1:50000"
            far.close()
        listening.close()
        with pytest.raises(ConnectError):
            await relay.connect_in_tunnel("wg0", own, 51822, seconds=1)

    asyncio.run(body())
