"""The engine in memory."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from wgvsock.testing.engine import MemoryEngine
from wgvsock.uplink.orders import Begin, Publish, decode_report


def test_it_reports_at_once_reads_orders_and_dies() -> None:
    async def test() -> None:
        packets, _ = socket.socketpair()
        relay, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        engine = MemoryEngine(packets, orders)
        assert decode_report(relay.recv(1000)).version == "4.7.0"
        begin = Begin((ip_address("10.73.0.2"),), (), 1)
        relay.send(begin.encode())
        relay.send(Publish().encode())
        engine.read_orders()
        assert (engine.begun, engine.ports) == (begin, Publish())
        engine.kill()
        assert await engine.wait() == -9
        with pytest.raises(ProcessLookupError):
            engine.kill()
        relay.close()
        _.close()

    asyncio.run(test())
