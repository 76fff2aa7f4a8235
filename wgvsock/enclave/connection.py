"""Moves bytes between a socket of the provisioning port and the exchange that runs on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol

from wgvsock.provisioning import Exchange
from wgvsock.transports.sockets import PRESSURE_PAUSE, is_pressure

_CHUNK: Final = 16_384
"""Bytes of one read. The longest message fits."""


class Server(Protocol):
    """The part of `wgvsock.enclave.provisioner.ProvisioningServer` that a connection needs."""

    def settle(self) -> None:
        """Do what the exchanges want done. Call it after every change to one of them."""
        ...

    def queue(self, connection: Connection) -> None:
        """Queue a stranger's connection that has data to read. `Connection.read` is called when its turn comes."""
        ...

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed."""
        ...


class Connection:
    """One socket in the event loop, and its exchange.

    Args:
        sock: The accepted connection. It is closed here.
        exchange: The exchange that runs on it.
        server: The server to notify of every change.
        clock: Monotonic seconds.
    """

    def __init__(self, sock: socket.socket, exchange: Exchange, server: Server, clock: Callable[[], float]) -> None:
        self.exchange = exchange
        self._socket = sock
        self._server = server
        self._clock = clock
        self._outgoing = bytearray()  # an exchange sends less than 20 KiB in all
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._retry: asyncio.TimerHandle | None = None

    def flush(self) -> None:
        """Send the exchange's data as far as the kernel takes it, and close after the last message.

        A peer whose receive buffer is full at that point does not get the last message: nothing is kept for it.
        """
        self._outgoing += self.exchange.data_to_send()
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            if not self.exchange.closed:  # it closes at its deadline
                self._loop.add_writer(self._socket, self._writable)
                return
        except OSError as error:
            if is_pressure(error) and not self.exchange.closed:
                if self._retry is None:
                    self._retry = self._loop.call_later(PRESSURE_PAUSE, self._try_again)
                return
            self.exchange.receive_eof()
        if self.exchange.closed:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        self._open = False
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._server.forget(self)

    def read(self) -> None:
        """Read what has arrived."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            pass
        except OSError:
            self.exchange.receive_eof()
        else:
            if data:
                self.exchange.receive_data(data, self._clock())
            else:
                self.exchange.receive_eof()
        self._server.settle()
        if self._open:
            self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        if self.exchange.proved:
            self.read()
        else:
            self._loop.remove_reader(self._socket)  # until its turn
            self._server.queue(self)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self.flush()
