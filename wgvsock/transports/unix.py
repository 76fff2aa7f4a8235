"""Unix stream sockets, plain and "hybrid": a virtual machine monitor's socket that forwards to guest vsock ports."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from wgvsock.addresses import HybridVsockAddress, Port
from wgvsock.transports.errors import ConnectError

_MAX_ANSWER: Final = 32
"""Bytes of the monitor's answer, at most ``OK 4294967295`` and a newline. Anything longer is something else."""

_OWNER_ONLY: Final = 0o600

BUFFER_SIZE: Final = 512 * 1024
"""Bytes in flight. With the default of 208 KiB, every full batch of 256 KiB blocks half-way. That costs a sixth of the
processor time of bulk traffic."""

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h, missing in Python's socket module


def unix_socket() -> socket.socket:
    """A non-blocking Unix stream socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    raise_buffer(sock)
    return sock


def raise_buffer(sock: socket.socket) -> None:
    """Let the kernel accept a whole batch of the tunnel at once. Accepted sockets do not inherit this.

    Needs CAP_NET_ADMIN, which a process with a tunnel has. Without it, the system's limit applies.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_SIZE)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)


def bind_unix(sock: socket.socket, path: str) -> None:
    """Bind with mode 0600, replacing a socket file that nobody listens on.

    Raises:
        OSError: A process listens there, or the path cannot be bound for another reason.
    """
    os.fchmod(sock.fileno(), _OWNER_ONLY)  # before bind: the file never exists with a wider mode
    remove_stale(path)
    sock.bind(path)


def remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on, ours or a dead process's."""
    if _is_stale(path):
        Path(path).unlink(missing_ok=True)


def hybrid_listening_path(address: HybridVsockAddress) -> str:
    """The path that the monitor connects to when its guest dials the port: Firecracker's ``PATH_PORT``."""
    return f"{address.path}_{address.port}"


async def hybrid_handshake(sock: socket.socket, port: Port) -> None:
    """Ask the monitor for a guest's port: ``CONNECT port``, answered by ``OK`` and a number (Firecracker's vsock.md).

    Raises:
        ConnectError: The monitor closed the connection, its way of refusing, or sent another answer.
        OSError: The stream broke.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"CONNECT %d\n" % port)
    answer = b""
    while not answer.endswith(b"\n"):
        # One byte at a time: everything after the newline belongs to the stream.
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise ConnectError(
                f"cannot reach the guest's port {port}",
                why="the virtual machine monitor closed the connection, so nothing listens there",
                fix="start the enclave first, or wait for it",
            )
        answer += byte
        if len(answer) > _MAX_ANSWER or not b"OK ".startswith(answer[:3]):
            raise ConnectError(
                f"cannot reach the guest's port {port}",
                why="the socket did not answer CONNECT as a virtual machine monitor does",
                fix="use unix:PATH for a socket that carries the stream itself",
            )


def _is_stale(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with unix_socket() as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False
