"""How the relay itself reaches an enclave's address in the tunnel, through either kind of uplink."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Protocol

from wgvsock.addresses import IpAddress, IpNetwork, UnixAddress
from wgvsock.machine.base import RelayMachine
from wgvsock.transports.sockets import connect_stream


class Reach(Protocol):
    """Connects to one enclave."""

    async def connect(self, interface: str, address: IpAddress, port: int, *, seconds: float) -> socket.socket:
        """See `wgvsock.machine.base.RelayMachine.connect_in_tunnel`.

        Raises:
            ConnectError: The connection was refused or not accepted in time, or the enclave is unreachable.
        """
        ...

    async def accepts(self, address: IpAddress, port: int) -> bool:
        """Whether the enclave accepts a TCP connection to this address and port within a second."""
        ...

    async def connections(self, networks: Collection[IpNetwork]) -> int:
        """Number of connections of the enclave, whose addresses are in these networks."""
        ...


class KernelReach:
    """Connects through the tunnel's interface.

    Args:
        machine: The machine that has this interface.
    """

    def __init__(self, machine: RelayMachine) -> None:
        self._machine = machine

    async def connect(self, interface: str, address: IpAddress, port: int, *, seconds: float) -> socket.socket:
        """See `Reach.connect`."""
        return await self._machine.connect_in_tunnel(interface, address, port, seconds=seconds)

    async def accepts(self, address: IpAddress, port: int) -> bool:
        """See `Reach.accepts`."""
        return await self._machine.accepts(address, port)

    async def connections(self, networks: Collection[IpNetwork]) -> int:
        """See `Reach.connections`."""
        return await self._machine.in_thread(lambda: self._machine.connections(networks))


class UserspaceReach:
    """Connects through the engine, which forwards one Unix socket to the agent's reports and nothing else.

    Args:
        path: Path of that socket.
        connections: Returns the number of connections that the engine has.
    """

    def __init__(self, path: str, connections: Callable[[], int]) -> None:
        self._path = path
        self._connections = connections

    async def connect(self, interface: str, address: IpAddress, port: int, *, seconds: float) -> socket.socket:  # noqa: ARG002
        """See `Reach.connect`."""
        return await connect_stream(UnixAddress(self._path), deadline=asyncio.get_running_loop().time() + seconds)

    async def accepts(self, address: IpAddress, port: int) -> bool:  # noqa: ARG002
        """See `Reach.accepts`. This cannot be tested here, so the result is always True."""
        return True

    async def connections(self, networks: Collection[IpNetwork]) -> int:  # noqa: ARG002
        """See `Reach.connections`."""
        return self._connections()
