"""Accepts streams on one address, within limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from wgvsock.addresses import Cid, StreamAddress
from wgvsock.transports.sockets import DESCRIPTOR_PAUSE, accept_now
from wgvsock.transports.unix import remove_stale

_log = logging.getLogger(__name__)


class Listener:
    """One listening socket in the event loop.

    Args:
        sock: From `wgvsock.transports.sockets.listen_stream`. The listener owns it.
        allowed_cids: CIDs that may connect over vsock, or None for any.
        on_accepted: Takes over an accepted socket, with its remote address.
    """

    def __init__(
        self,
        sock: socket.socket,
        allowed_cids: frozenset[Cid] | None,
        on_accepted: Callable[[socket.socket, StreamAddress], None],
    ) -> None:
        self._socket = sock
        self._allowed_cids = allowed_cids
        self._on_accepted = on_accepted
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Stop listening. Accepted streams live on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        path = self._socket.getsockname() if self._socket.family == socket.AF_UNIX else ""
        self._socket.close()
        remove_stale(path)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        # One per iteration of the loop: a flood of connections must not hold up the data plane.
        try:
            accepted = accept_now(self._socket, allowed_cids=self._allowed_cids)
        except OSError as error:
            # The connection stays in the backlog and the socket stays readable: stop watching, or the loop spins.
            _log.warning("cannot accept a connection: %s", error.strerror)
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(DESCRIPTOR_PAUSE, self._resume)
            return
        if accepted is not None:
            self._on_accepted(*accepted)
