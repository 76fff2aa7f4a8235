"""The provisioning port: the network side of `wgvsock.provisioning.EnclaveProvisioning`.

Sockets are read and written in callbacks, each of which ends in `settle`: send what the exchanges want to send, hand
their events to the one worker, set the timer. The worker carries events out one after the other, because all of them
change the same peer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from wgvsock.addresses import Cid, StreamAddress
from wgvsock.provisioning import LISTEN_BACKLOG, EnclaveEvent, EnclaveProvisioning, Exchange
from wgvsock.system.tasks import first_of
from wgvsock.transports.sockets import accept_stream, listen_stream

_CHUNK: Final = 16_384
"""Bytes of one read: the longest message fits."""

MAX_CONNECTIONS: Final = 8
"""One exchange goes on at a time; the others are connections that still have to be told so."""

LAST_WORD_TIMEOUT: Final = 2.0
"""Seconds beyond the exchange's own deadline in which a client has to take what it is told: one that makes no room for
it must not keep its place."""

Work = Callable[[EnclaveEvent], Awaitable[None]]
"""Carries an event out; what it raises ends the agent."""

_log = logging.getLogger(__name__)


class ProvisioningServer:
    """Accepts connections and runs their exchanges.

    Args:
        address: Where to listen.
        provisioning: The enclave's side of the protocol.
        work: Carries out one event at a time.
        clock: Monotonic seconds.
        allowed_cids: Who may connect over vsock.
    """

    def __init__(
        self,
        address: StreamAddress,
        provisioning: EnclaveProvisioning,
        work: Work,
        *,
        clock: Callable[[], float],
        allowed_cids: frozenset[Cid] | None = None,
    ) -> None:
        self._listener = listen_stream(address, backlog=LISTEN_BACKLOG)
        self._provisioning = provisioning
        self._work = work
        self._clock = clock
        self._allowed_cids = allowed_cids
        self._events: asyncio.Queue[EnclaveEvent] = asyncio.Queue()
        self._connections: set[_Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Accept until cancelled; then every socket is closed.

        Raises:
            Exception: Whatever `work` raised.
        """
        try:
            await first_of(self._accept(), self._carry_out())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for connection in list(self._connections):
                connection.close()
            self._listener.close()

    def settle(self) -> None:
        """Do what the exchanges want done; to be called after every change of theirs."""
        for connection in list(self._connections):
            connection.flush()
        while (event := self._provisioning.next_event()) is not None:
            self._events.put_nowait(event)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._provisioning.next_deadline()
        if deadline is not None:
            delay = max(0.0, deadline - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def forget(self, connection: _Connection) -> None:
        """For `_Connection`: it is closed."""
        self._connections.discard(connection)

    async def _accept(self) -> NoReturn:
        while True:
            sock, address = await accept_stream(self._listener, allowed_cids=self._allowed_cids)
            if len(self._connections) >= MAX_CONNECTIONS:
                _log.warning("refused a provisioning connection from %s: too many are open", address)
                sock.close()
                continue
            exchange = self._provisioning.accept(self._clock())
            patience = self._provisioning.deadlines.exchange + LAST_WORD_TIMEOUT
            self._connections.add(_Connection(sock, exchange, self, self._clock, patience))
            self.settle()

    async def _carry_out(self) -> NoReturn:
        while True:
            await self._work(await self._events.get())
            self.settle()

    def _timer_fired(self) -> None:
        self._timer = None
        self._provisioning.handle_timers(self._clock())
        self.settle()


class _Connection:
    """Bytes between one socket and its exchange."""

    def __init__(
        self,
        sock: socket.socket,
        exchange: Exchange,
        server: ProvisioningServer,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self._socket = sock
        self._exchange = exchange
        self._server = server
        self._clock = clock
        self._outgoing = bytearray()  # an exchange says less than 20 KiB in all
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._patience = self._loop.call_later(patience, self.close)

    def flush(self) -> None:
        """Send what the exchange has to say as far as the kernel takes it; close after its last word."""
        self._outgoing += self._exchange.data_to_send()
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
            return
        except OSError:
            self._exchange.receive_eof()
            self.close()
            return
        if self._exchange.closed:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        self._patience.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._server.forget(self)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._exchange.receive_data(data, self._clock())
        else:
            self._exchange.receive_eof()
        self._server.settle()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._server.settle()
