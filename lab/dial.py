"""Dials the Enclave's vsock from this side of its device, and never leaves before the answer.

vhost-device-vsock 0.3.0 does not survive a client of its Unix socket gone before the guest's answer arrives. Its
thread panics on the broken pipe, and the guest has no vsock from then on. A busy guest answers late, so a caller waits
long, and closes afterwards what it no longer needs.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from wgvsock.addresses import StreamAddress
from wgvsock.transports.sockets import connect_stream

ANSWER_TIMEOUT: Final = 600.0
"""Seconds for an answer. A guest that is paused gives none until it is resumed. A port without a listener refuses at
once."""


async def dial(address: StreamAddress) -> socket.socket:
    """Connect. Do not cancel this: wait for it, and close the socket then.

    Args:
        address: The Enclave's, or its device's.

    Returns:
        A connected, non-blocking socket.

    Raises:
        ConnectError: Nothing listens there.
    """
    return await connect_stream(address, deadline=asyncio.get_running_loop().time() + ANSWER_TIMEOUT)
