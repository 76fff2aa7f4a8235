"""How the relay reaches an enclave on either uplink."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from wgvsock.relay.uplink.reach import KernelReach, UserspaceReach
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ConnectError

ADDRESS, NETWORKS = ip_address("10.73.0.2"), (ip_network("10.73.0.0/24"),)


def test_the_kernels_way_is_the_machines() -> None:
    machine = MemoryMachine()
    machine.connections_left = [7]
    reach = KernelReach(machine)

    async def test() -> None:
        assert await reach.accepts(ADDRESS, 80)
        assert await reach.connections(NETWORKS) == 7
        with pytest.raises(ConnectError):
            await reach.connect("wg0", ADDRESS, 80, seconds=1.0)

    asyncio.run(test())


def test_through_the_engine_leads_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    reach = UserspaceReach(path, lambda: 5)

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            connected = await reach.connect("userspace", ADDRESS, 80, seconds=60.0)
            server.accept()[0].close()
            connected.close()
        assert await reach.accepts(ADDRESS, 80)
        assert await reach.connections(NETWORKS) == 5
        with pytest.raises(ConnectError):
            await UserspaceReach(f"{path}.none", lambda: 0).connect("userspace", ADDRESS, 80, seconds=0.0)

    asyncio.run(test())
