"""Dials the Enclave's vsock from this side of its device, and never leaves before the answer.

vhost-device-vsock 0.3.0 does not survive a client of its Unix socket gone before the guest's answer arrives. Its
thread panics on the broken pipe, and the guest has no vsock from then on. A busy guest answers late, so a caller waits
long, and closes afterwards what it no longer needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from wgvsock.addresses import StreamAddress
from wgvsock.errors import WgvsockError
from wgvsock.transports.sockets import connect_stream

ANSWER_TIMEOUT: Final = 600.0
"""Seconds for an answer. A guest that is paused gives none until it is resumed. A port without a listener refuses at
once."""


async def dial(address: StreamAddress) -> socket.socket:
    """Connect. If it is cancelled, it ends once the answer is there, for which the event loop must still run.

    Args:
        address: The Enclave's, or its device's.

    Returns:
        A connected, non-blocking socket.

    Raises:
        ConnectError: Nothing listens there.
    """
    deadline = asyncio.get_running_loop().time() + ANSWER_TIMEOUT
    attempt = asyncio.ensure_future(connect_stream(address, deadline=deadline))
    try:
        return await asyncio.shield(attempt)
    except asyncio.CancelledError:
        with contextlib.suppress(WgvsockError):
            (await attempt).close()
        raise


def dial_now(address: StreamAddress, *, timeout: float) -> socket.socket:
    """`dial`, for callers without an event loop.

    Args:
        address: See `dial`.
        timeout: Seconds for each later operation on the socket.

    Returns:
        A connected, blocking socket.

    Raises:
        ConnectError: Nothing listens there.
    """
    sock = asyncio.run(dial(address))
    sock.settimeout(timeout)
    return sock
