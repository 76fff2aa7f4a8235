"""Raw, non-blocking, connected stream sockets of every kind: what the links and the provisioning port are made on.

A deadline is an absolute time of the event loop's clock, in seconds (``loop.time() + 10``), so that several steps
share one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from wgvsock.addresses import Cid, HybridVsockAddress, StreamAddress, TcpAddress, UnixAddress, VsockAddress
from wgvsock.errors import TransportError
from wgvsock.transports.errors import ConnectError, ListenError
from wgvsock.transports.tcp import set_options, tcp_address, tcp_socket
from wgvsock.transports.unix import bind_unix, hybrid_handshake, hybrid_listening_path, raise_buffer, unix_socket
from wgvsock.transports.vsock import start_connect, vsock_address, vsock_socket

BACKLOG: Final = 16
"""Connections that may wait for accept: there is one relay to an enclave, and strangers get no room to pile up."""

DESCRIPTOR_PAUSE: Final = 1.0
"""Seconds without accepting after the process ran out of descriptors or memory, instead of a busy loop."""

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger(__name__)


async def connect_stream(address: StreamAddress, *, deadline: float, to_host: bool = False) -> socket.socket:
    """Connect, and for a hybrid address have the monitor connect as well.

    Args:
        address: Where to.
        deadline: When to give up, on the event loop's clock.
        to_host: Pass VMADDR_FLAG_TO_HOST (vsock only, see `wgvsock.transports.vsock.start_connect`).

    Raises:
        ConnectError: Refused, unreachable or too late.
        VsockUnavailableError: There is no AF_VSOCK here.
    """
    try:
        sock = _socket_for(address)
    except OSError as error:
        raise _connect_error(address, error) from None
    try:
        async with asyncio.timeout_at(deadline):
            await _connect(sock, lambda: _start_connect(sock, address, to_host=to_host))
            if isinstance(address, HybridVsockAddress):
                await hybrid_handshake(sock, address.port)
    except (OSError, TransportError, asyncio.CancelledError) as error:  # TimeoutError is an OSError
        sock.close()
        if isinstance(error, OSError):
            raise _connect_error(address, error) from None
        raise
    return sock


def listen_stream(address: StreamAddress, *, backlog: int = BACKLOG) -> socket.socket:
    """Bind and listen.

    Raises:
        ListenError: The address is in use, or not ours to bind.
        VsockUnavailableError: There is no AF_VSOCK here.
    """
    try:
        sock = _socket_for(address)
    except OSError as error:
        raise _listen_error(address, error) from None
    try:
        match address:
            case VsockAddress(cid, port):
                sock.bind((cid, port))
            case UnixAddress(path):
                bind_unix(sock, path)
            case HybridVsockAddress():
                bind_unix(sock, hybrid_listening_path(address))
            case TcpAddress(host, port):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _listen_error(address, error) from None
    return sock


async def accept_stream(
    listener: socket.socket, *, allowed_cids: frozenset[Cid] | None = None
) -> tuple[socket.socket, StreamAddress]:
    """The next connection, passing over those of foreign CIDs and over passing failures.

    Args:
        listener: A socket of `listen_stream`.
        allowed_cids: Who may connect over vsock; None: anybody.
    """
    while True:
        await _ready(listener, for_writing=False)
        try:
            accepted = accept_now(listener, allowed_cids=allowed_cids)
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error.strerror)
            await asyncio.sleep(DESCRIPTOR_PAUSE)
            continue
        if accepted is not None:
            return accepted


def accept_now(
    listener: socket.socket, *, allowed_cids: frozenset[Cid] | None = None
) -> tuple[socket.socket, StreamAddress] | None:
    """A connection that waits, non-blocking; None: there is none, or it was of a foreign CID and was closed.

    Raises:
        OSError: The process has no descriptor or memory left; wait before the next try.
    """
    try:
        sock, _ = listener.accept()
    except OSError as error:
        if error.errno in _OUT_OF_RESOURCES:
            raise
        return None  # it went away before it was accepted (accept(2): treat as EAGAIN)
    sock.setblocking(False)
    try:
        address = peer_address(sock)
    except OSError:
        sock.close()
        return None
    if isinstance(address, VsockAddress) and allowed_cids is not None and address.cid not in allowed_cids:
        _log.warning("refused a connection from CID %d", address.cid)
        sock.close()
        return None
    if isinstance(address, TcpAddress):
        set_options(sock)
    elif isinstance(address, UnixAddress):
        raise_buffer(sock)
    return sock, address


def peer_address(sock: socket.socket) -> StreamAddress:
    """Who is at the other end; for a Unix socket, the path of the listening end.

    Raises:
        OSError: The socket is not connected any more.
    """
    name = sock.getpeername()
    if sock.family == socket.AF_UNIX:
        return UnixAddress(name or sock.getsockname() or "-")
    return vsock_address(name) if sock.family == socket.AF_VSOCK else tcp_address(name)


def _socket_for(address: StreamAddress) -> socket.socket:
    match address:
        case VsockAddress():
            return vsock_socket()
        case TcpAddress(host, _):
            return tcp_socket(host)
        case UnixAddress() | HybridVsockAddress():
            return unix_socket()


def _start_connect(sock: socket.socket, address: StreamAddress, *, to_host: bool) -> int:
    match address:
        case VsockAddress():
            return start_connect(sock, address, to_host=to_host)
        case TcpAddress(host, port):
            return sock.connect_ex((host, port))
        case UnixAddress(path) | HybridVsockAddress(path, _):
            return sock.connect_ex(path)


async def _connect(sock: socket.socket, start: Callable[[], int]) -> None:
    # By hand: uvloop's sock_connect refuses the addresses of AF_VSOCK.
    code = start()
    if code == errno.EINPROGRESS:
        await _ready(sock, for_writing=True)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _ready(sock: socket.socket, *, for_writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    if for_writing:
        loop.add_writer(sock, ready.set)
    else:
        loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        if for_writing:
            loop.remove_writer(sock)
        else:
            loop.remove_reader(sock)


def _connect_error(address: StreamAddress, error: OSError) -> ConnectError:
    late = isinstance(error, TimeoutError) and not error.errno
    return ConnectError(
        f"cannot connect to {address}",
        why="no answer in time" if late else error.strerror or str(error),
        fix="check that the other side runs and listens there; it is tried again",
    )


def _listen_error(address: StreamAddress, error: OSError) -> ListenError:
    return ListenError(
        f"cannot listen on {address}",
        why=error.strerror or str(error),
        fix="stop whatever holds the address, or choose another",
    )
