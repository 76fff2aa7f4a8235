"""Binds the published ports, and retries those that are in use."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from wgvsock.uplink.orders import Port

MAX_PORTS: Final = 1024
"""Published ports, each of which needs one more descriptor."""

AGAIN: Final = 0.002
"""Seconds for each port that is in use until they are tried again. The enclave that is replaced releases them at any
moment, and clients are refused until then. An attempt takes about 15 µs, which is a hundredth of the processor."""
AGAIN_AT_LATEST: Final = 0.02
"""The same for any number of ports."""
HURRY: Final = 30.0
"""Seconds for which a port is retried so often. After that it is retried with each report."""


BACKLOG: Final = 128
"""Clients that may wait to be accepted, as at a server. libslirp has one wait: a second one would be told nothing, and
would try again after a second."""


def deepen(fd: int) -> bool:
    """Let more clients wait at a listening socket. Does nothing to another one.

    Returns:
        Whether other machines reach the socket.
    """
    sock = socket.socket(fileno=fd)
    try:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(BACKLOG)
        return sock.family != socket.AF_UNIX
    finally:
        sock.detach()


class Ports:
    """The published ports of one engine.

    Args:
        forward: Binds a port and forwards it to the enclave. Returns 0 or an errno.
        unforward: Stops forwarding a port.
    """

    def __init__(self, forward: Callable[[Port], int], unforward: Callable[[Port], None]) -> None:
        self._forward = forward
        self._unforward = unforward
        self._wanted: tuple[Port, ...] = ()
        self._published: set[Port] = set()
        self._again_at = self._hurry_until = 0.0  # 0 if no port is to be retried
        self._pause = AGAIN

    def __len__(self) -> int:
        return len(self._published)

    def publish(self, ports: tuple[Port, ...], now: float) -> dict[str, int]:
        """Forward exactly these ports to the enclave.

        Returns:
            The errno for each port that could not be bound, by the port's text.
        """
        for port in self._published - set(ports):
            self._unforward(port)
            self._published.remove(port)
        self._wanted = ports[:MAX_PORTS]
        failed = self.bind()
        taken = sum(error == errno.EADDRINUSE for error in failed.values())
        self._pause = min(AGAIN * taken, AGAIN_AT_LATEST)
        self._again_at, self._hurry_until = (now + self._pause, now + HURRY) if taken else (0.0, 0.0)
        return failed

    def bind(self) -> dict[str, int]:
        """Bind the ports that are not bound yet. Another engine may have held a port until now."""
        failed: dict[str, int] = {}
        for port in self._wanted:
            if port in self._published:
                continue
            if error := self._forward(port):
                failed[str(port)] = error
            else:
                self._published.add(port)
        return failed

    def patience(self, longest: float) -> float:
        """The longest wait of the next turn, in seconds.

        Args:
            longest: The longest wait if no port is to be retried, in seconds.
        """
        return min(longest, self._pause) if self._hurry_until else longest

    def hurry(self, now: float) -> bool:
        """Retry the ports if it is time to. Returns whether there is news to report."""
        if not self._hurry_until or now < self._again_at:
            return False
        self._again_at = now + self._pause
        if self.bind() and now < self._hurry_until:
            return False
        self._again_at = self._hurry_until = 0.0
        return True
