"""The provisioning port: the network side of `wgvsock.provisioning.EnclaveProvisioning`.

Anybody can connect here as often as they like, not only the relay. Work that strangers cause, accepting and reading, is
therefore done in small steps within an allowance of processor time, and the tunnel and the one proved exchange run
unaffected. Connections beyond the allowance wait in the kernel's backlog. For each connection accepted, two with
pending data are read. A REQUEST is therefore judged before newcomers can take its place.

Every change to an exchange ends in `settle`: send its data, wake the one worker, set the timer. The worker handles one
event at a time, because all of them change the same peer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Protocol

from wgvsock.addresses import Cid, StreamAddress
from wgvsock.enclave.connection import Connection
from wgvsock.provisioning import (
    STRANGERS_BURST,
    STRANGERS_SHARE,
    Allowance,
    EnclaveEvent,
    EnclaveProvisioning,
    Exchange,
)
from wgvsock.runtime.tasks import first_of
from wgvsock.transports.sockets import DESCRIPTOR_PAUSE, accept_now
from wgvsock.transports.vsock import limit_buffer

READS_AN_ACCEPT: Final = 2
"""With 1, newcomers could take every place between the arrival of a REQUEST and its turn."""

RECEIVE_BUFFER: Final = 32 * 1024
"""Bytes that the kernel buffers of what a connection sends before it is read: four times the longest REQUEST. With the
tunnel's buffers of one MiB, the 384 connections that are accepted or in the backlog could fill 384 MiB of the enclave's
memory. This limit makes it 12 MiB."""

Work = Callable[[EnclaveEvent], Awaitable[None]]
"""Carries out an event. An exception ends the agent."""


class Accept(Protocol):
    """See `wgvsock.transports.sockets.accept_now`."""

    def __call__(
        self, listener: socket.socket, *, allowed_cids: frozenset[Cid] | None = None
    ) -> tuple[socket.socket, StreamAddress] | None:
        """Accept one pending connection. None if there is none, or none that is allowed."""
        ...


_log = logging.getLogger(__name__)


class ProvisioningServer:
    """Accepts connections and runs their exchanges.

    Args:
        listener: From `wgvsock.transports.sockets.listen_stream`. The server owns it.
        provisioning: The enclave's side of the protocol.
        work: Carries out one event at a time.
        clock: Monotonic seconds.
        work_clock: Seconds of processor time that this thread has used.
        allowed_cids: CIDs that may connect over vsock.
        accept: Takes a connection from a listening socket.
    """

    def __init__(
        self,
        listener: socket.socket,
        provisioning: EnclaveProvisioning,
        work: Work,
        *,
        clock: Callable[[], float],
        work_clock: Callable[[], float] = time.thread_time,
        allowed_cids: frozenset[Cid] | None = None,
        accept: Accept = accept_now,
    ) -> None:
        limit_buffer(listener, RECEIVE_BUFFER)
        self._listener = listener
        self._provisioning = provisioning
        self._work = work
        self._clock = clock
        self._work_clock = work_clock
        self._allowed_cids = allowed_cids
        self._take = accept
        self._allowance = Allowance(STRANGERS_SHARE, STRANGERS_BURST)
        self._connections: dict[Exchange, Connection] = {}
        self._readable: dict[Connection, None] = {}  # strangers' connections with data to read, oldest first
        self._acceptable = False
        self._strangers = asyncio.Event()  # set if either of the two has work
        self._events = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._pause: asyncio.TimerHandle | None = None  # no accepting while the process has no descriptor left

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    async def serve(self) -> None:
        """Accept connections until cancelled, then close every socket.

        Raises:
            Exception: Whatever `work` raised.
        """
        loop = asyncio.get_running_loop()
        try:
            await first_of(self._attend_strangers(), self._carry_out())
        finally:
            for timer in (self._timer, self._pause):
                if timer is not None:
                    timer.cancel()
            for connection in list(self._connections.values()):
                connection.close()
            loop.remove_reader(self._listener)
            self._listener.close()

    def settle(self) -> None:
        """Do what the exchanges want done. Call it after every change to one of them."""
        while changed := self._provisioning.take_changed():
            for exchange in changed:
                if connection := self._connections.get(exchange):
                    connection.flush()
        if self._provisioning.has_event:
            self._events.set()
        deadline = self._provisioning.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            # A timer that is set for an earlier time stays: it finds nothing due, and sets the next one.
            if self._timer is not None:
                self._timer.cancel()
            delay = max(0.0, deadline - self._clock())
            self._timer_at = deadline
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    # See `wgvsock.enclave.connection.Server`.

    def queue(self, connection: Connection) -> None:
        """Queue a stranger's connection that has data to read."""
        self._readable[connection] = None
        self._strangers.set()

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed."""
        self._connections.pop(connection.exchange, None)
        self._readable.pop(connection, None)

    # Work that strangers cause.

    async def _attend_strangers(self) -> NoReturn:
        self._watch_listener()
        while True:
            await self._strangers.wait()
            began = self._work_clock()
            if self._acceptable:
                self._accept()
            for _ in range(READS_AN_ACCEPT):
                if self._readable:
                    connection = next(iter(self._readable))
                    del self._readable[connection]
                    connection.read()
            if not self._acceptable and not self._readable:
                self._strangers.clear()
            await asyncio.sleep(self._allowance.spend(self._work_clock() - began, self._clock()))

    def _watch_listener(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._listener_readable)

    def _listener_readable(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._acceptable = True
        self._strangers.set()

    def _accept(self) -> None:
        try:
            accepted = self._take(self._listener, allowed_cids=self._allowed_cids)
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error.strerror)
            self._acceptable = False
            self._pause = asyncio.get_running_loop().call_later(DESCRIPTOR_PAUSE, self._watch_listener)
            return
        if accepted is None:  # there is none, or it was not allowed: the kernel tells when there is another
            self._acceptable = False
            self._watch_listener()
            return
        exchange = self._provisioning.accept(self._clock())
        self._connections[exchange] = Connection(accepted[0], exchange, self, self._clock)
        self.settle()

    # Work that the exchanges and the timer cause.

    async def _carry_out(self) -> NoReturn:
        while True:
            while (event := self._provisioning.next_event()) is not None:
                await self._work(event)
                self.settle()
            self._events.clear()
            await self._events.wait()

    def _timer_fired(self) -> None:
        self._timer = None
        self._provisioning.handle_timers(self._clock())
        self.settle()
