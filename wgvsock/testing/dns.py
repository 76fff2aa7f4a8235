"""DNS for tests: a forwarder's sockets on loopback, and a name server that answers as a test wants."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from wgvsock.addresses import IpAddress, Port, TcpAddress
from wgvsock.transports.errors import ConnectError, ListenError
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import connect_stream

LOOPBACK: Final = "127.0.0.1"

Script = Callable[[bytes, bool], Iterable[bytes]]
"""Returns the answers to one message. The flag says whether the message came over TCP."""


class MemoryDnsSockets:
    """Satisfies `wgvsock.dns.sockets.DnsSockets`: every address stands for ports on loopback.

    Attributes:
        listening: UDP and TCP port of each bound address.
        interfaces: Interfaces on which queries are accepted.
        servers: Port of each reachable name server.
        refuses: Set it to make every bind fail.
    """

    def __init__(self) -> None:
        self.listening: dict[IpAddress, tuple[int, int]] = {}
        self.interfaces: set[str] = set()
        self.servers: dict[IpAddress, int] = {}
        self.refuses = False

    def listen(self, address: IpAddress, interface: str) -> tuple[socket.socket, socket.socket]:
        """See `DnsSockets.listen`."""
        if self.refuses:
            raise ListenError(f"cannot answer DNS queries on {address}", why="the test says so", fix=interface)
        datagrams, streams = _pair()
        self.interfaces.add(interface)
        self.listening[address] = datagrams.getsockname()[1], streams.getsockname()[1]
        return datagrams, streams

    def to_server(self, server: IpAddress) -> socket.socket:
        """See `DnsSockets.to_server`."""
        if server not in self.servers:
            raise OSError("Network is unreachable")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.connect((LOOPBACK, self.servers[server]))
        return sock

    async def stream_to_server(self, server: IpAddress, *, deadline: float) -> socket.socket:
        """See `DnsSockets.stream_to_server`."""
        if server not in self.servers:
            raise ConnectError(f"cannot connect to {server}", why="Network is unreachable")
        return await connect_stream(TcpAddress(LOOPBACK, Port(self.servers[server])), deadline=deadline)


class ScriptedNameServer:
    """A name server on loopback.

    Args:
        sockets: The sockets that can reach it.
        address: Its address there.
        script: Makes its answers.

    Attributes:
        asked: Every received message, and whether it came over TCP.
        clients: The source port of each datagram.
    """

    def __init__(self, sockets: MemoryDnsSockets, address: str, script: Script) -> None:
        self.asked: list[tuple[bytes, bool]] = []
        self.clients: list[int] = []
        self._script = script
        self._datagrams, self._streams = _pair()
        self._tasks: set[asyncio.Task[None]] = set()
        sockets.servers[ip_address(address)] = self._datagrams.getsockname()[1]

    def open(self) -> None:
        """Start answering. An event loop has to be running."""
        asyncio.get_running_loop().add_reader(self._datagrams, self._heard)
        self._listener = Listener(self._streams, None, lambda sock, _: self._accepted(sock))

    def close(self) -> None:
        """Stop answering, and close the sockets."""
        asyncio.get_running_loop().remove_reader(self._datagrams)
        self._datagrams.close()
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    def send(self, answer: bytes, port: int) -> None:
        """Send a datagram to a port on loopback."""
        self._datagrams.sendto(answer, (LOOPBACK, port))

    def _heard(self) -> None:
        wire, client = self._datagrams.recvfrom(65535)
        self.asked.append((wire, False))
        self.clients.append(client[1])
        for answer in self._script(wire, False):
            self._datagrams.sendto(answer, client)

    def _accepted(self, sock: socket.socket) -> None:
        task = asyncio.ensure_future(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            while len(prefix := await loop.sock_recv(sock, 2)) == 2:
                wire = await loop.sock_recv(sock, int.from_bytes(prefix, "big"))
                self.asked.append((wire, True))
                for answer in self._script(wire, True):
                    await loop.sock_sendall(sock, len(answer).to_bytes(2, "big") + answer)


def _pair() -> tuple[socket.socket, socket.socket]:
    """A UDP socket, and a listening TCP socket on the same port."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    datagrams.bind((LOOPBACK, 0))
    streams = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        streams.bind((LOOPBACK, datagrams.getsockname()[1]))
    except OSError:  # the port is taken for TCP: try another one for both
        datagrams.close()
        streams.close()
        return _pair()
    streams.listen()
    return datagrams, streams
