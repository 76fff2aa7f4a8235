"""Forwards a vsock port: ``python -m lab.qemu.forward --peer CID LISTEN UPSTREAM``, two stream addresses.

The kernel delivers every guest's connections to the same AF_VSOCK: only those from the given CID are accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import Final

from wgvsock.addresses import Cid, StreamAddress, parse_stream_address
from wgvsock.errors import WgvsockError
from wgvsock.transports.listener import Listener
from wgvsock.transports.sockets import connect_stream, listen_stream

_DIAL_TIMEOUT: Final = 10.0  # seconds
_PIECE: Final = 65536  # bytes


async def forward(listener: socket.socket, peer: Cid, upstream: StreamAddress) -> None:
    """Join every connection of one peer to a new upstream connection, until cancelled."""
    joined = set[asyncio.Task[None]]()

    def join(accepted: socket.socket, _: StreamAddress) -> None:
        task = asyncio.create_task(_join(accepted, upstream))
        joined.add(task)
        task.add_done_callback(joined.discard)

    with contextlib.closing(Listener(listener, frozenset({peer}), join)):
        await asyncio.Event().wait()


async def _join(accepted: socket.socket, upstream: StreamAddress) -> None:
    """Carry both directions until either end closes. Then close the other, as with a single stream."""
    with accepted, contextlib.suppress(WgvsockError, OSError):
        deadline = asyncio.get_running_loop().time() + _DIAL_TIMEOUT
        with await connect_stream(upstream, deadline=deadline) as dialled:
            ways = [asyncio.create_task(_copy(accepted, dialled)), asyncio.create_task(_copy(dialled, accepted))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _PIECE):
        await loop.sock_sendall(target, data)


def main(argv: Sequence[str]) -> int:
    """Run until killed."""
    parser = argparse.ArgumentParser(prog="lab.qemu.forward")
    parser.add_argument(
        "--peer", type=int, required=True, metavar="CID", help="the only CID that may connect over vsock"
    )
    parser.add_argument("listen", type=parse_stream_address, metavar="LISTEN")
    parser.add_argument("upstream", type=parse_stream_address, metavar="UPSTREAM")
    arguments = parser.parse_args(argv)
    listener = listen_stream(arguments.listen)
    print("ready", flush=True)
    asyncio.run(forward(listener, Cid(arguments.peer), arguments.upstream))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
