"""A port on which the agent itself listens inside the tunnel. Its addresses change with the configuration."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection

from wgvsock.addresses import IpAddress, StreamAddress
from wgvsock.errors import TransportError
from wgvsock.machine.base import EnclaveMachine, Listening
from wgvsock.telemetry.logs import error_fields

_log = logging.getLogger(__name__)


class TunnelPort:
    """Listens on one port.

    Args:
        machine: The machine to listen on.
        interface: The tunnel's interface.
        port: The port, or 0 to listen on none.
        on_accepted: Takes each connection, with the peer's address.
        what: What is served there, for the log.
    """

    def __init__(
        self,
        machine: EnclaveMachine,
        interface: str,
        port: int,
        on_accepted: Callable[[socket.socket, StreamAddress], None],
        what: str,
    ) -> None:
        self._machine = machine
        self._interface = interface
        self._port = port
        self._on_accepted = on_accepted
        self._what = what
        self._listening: dict[IpAddress, Listening] = {}

    def listen(self, addresses: Collection[IpAddress]) -> None:
        """Serve on exactly these addresses. Those that are served already are not interrupted."""
        if not self._port:
            return
        for address in self._listening.keys() - set(addresses):
            self._listening.pop(address).close()
        for address in addresses:
            if address not in self._listening:
                try:
                    self._listening[address] = self._machine.listen_in_tunnel(
                        self._interface, address, self._port, self._on_accepted
                    )
                except TransportError as error:
                    _log.error("cannot serve %s", self._what, extra=error_fields(error))

    def close(self) -> None:
        """Stop listening. Idempotent."""
        for listening in self._listening.values():
            listening.close()
        self._listening.clear()
