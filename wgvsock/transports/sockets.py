"""Non-blocking stream sockets of every kind: the basis of the links and of the provisioning port.

A deadline is an absolute time on the event loop's clock, in seconds (``loop.time() + 10``), so that several steps can
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
from wgvsock.transports.errors import OUT_OF_RESOURCES, ConnectError, ListenError
from wgvsock.transports.tcp import accept_both_families, bind_to_interface, set_options, tcp_address, tcp_socket
from wgvsock.transports.unix import bind_unix, hybrid_handshake, hybrid_listening_path, raise_buffer, unix_socket
from wgvsock.transports.vsock import start_connect, vsock_address, vsock_socket

BACKLOG: Final = 64
"""Connections that may wait for accept. A full backlog refuses the relay as well. At 650 connections a second, this one
fills up while the event loop is busy for a tenth of a second. Each may hold a megabyte of kernel memory."""

DESCRIPTOR_PAUSE: Final = 1.0
"""Seconds without accepting after the process ran out of descriptors or memory, instead of a busy loop."""

PRESSURE_PAUSE: Final = 0.01
"""Seconds until the next send if the kernel had no memory for one. Costs about 1 % of a processor while it lasts."""

_PRESSURE: Final = frozenset({errno.ENOBUFS, errno.ENOMEM})
"""Errors of vsock when it has no buffer for a packet. Older kernels return ENOMEM for any failure there. The stream
lives on. That it is writable means nothing then, because it may have been writable all along. (After EINTR, Python
retries by itself.)"""

_log = logging.getLogger(__name__)


async def connect_stream(
    address: StreamAddress, *, deadline: float, to_host: bool = False, interface: str | None = None
) -> socket.socket:
    """Connect. For a hybrid address, the monitor connects to its guest as well.

    Args:
        address: The remote.
        deadline: When to give up, in seconds on the event loop's clock.
        to_host: Pass VMADDR_FLAG_TO_HOST (vsock only, see `wgvsock.transports.vsock.start_connect`).
        interface: The only outgoing interface (TCP only). No packet takes another one while it is down or has no route.

    Returns:
        A connected, non-blocking socket.

    Raises:
        ConnectError: The remote refused, is unreachable, or did not answer in time.
        VsockUnavailableError: AF_VSOCK is not available.
    """
    try:
        sock = _socket_for(address)
    except OSError as error:
        raise _connect_error(address, error) from None
    try:
        if interface is not None:
            bind_to_interface(sock, interface)
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


def listen_stream(
    address: StreamAddress, *, backlog: int = BACKLOG, interface: str | None = None, both_families: bool = False
) -> socket.socket:
    """Bind and listen.

    Args:
        address: The address to listen on.
        backlog: Connections that may wait for accept.
        interface: The only incoming interface (TCP only). Other interfaces and local processes cannot connect.
        both_families: Let ``[::]`` stand for every address of this machine, IPv4 included.

    Returns:
        A listening, non-blocking socket.

    Raises:
        ListenError: The address is in use, or we may not bind it.
        VsockUnavailableError: AF_VSOCK is not available.
    """
    try:
        sock = _socket_for(address)
    except OSError as error:
        raise _listen_error(address, error) from None
    try:
        if interface is not None:
            bind_to_interface(sock, interface)
        match address:
            case VsockAddress(cid, port):
                sock.bind((cid, port))
            case UnixAddress(path):
                bind_unix(sock, path)
            case HybridVsockAddress():
                bind_unix(sock, hybrid_listening_path(address))
            case TcpAddress(host, port):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if both_families and host == "::":
                    accept_both_families(sock)
                sock.bind((host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _listen_error(address, error) from None
    return sock


def is_pressure(error: OSError) -> bool:
    """Whether a send failed because the kernel lacked memory. Retry it after `PRESSURE_PAUSE`, within bounds."""
    return error.errno in _PRESSURE


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything, waiting while the kernel lacks memory. The caller sets the deadline.

    Args:
        sock: A connected, non-blocking socket.
        data: Any number of bytes.

    Raises:
        OSError: The stream broke.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            await _ready(sock, for_writing=True)
        except OSError as error:
            if not is_pressure(error):
                raise
            await asyncio.sleep(PRESSURE_PAUSE)


def accept_now(
    listener: socket.socket, *, allowed_cids: frozenset[Cid] | None = None
) -> tuple[socket.socket, StreamAddress] | None:
    """Accept a pending connection.

    Args:
        listener: A listening, non-blocking socket.
        allowed_cids: CIDs that may connect over vsock, or None for any.

    Returns:
        A non-blocking socket and the remote's address. None if no connection is pending, or if it came from a CID that
        is not allowed and was closed.

    Raises:
        OSError: The process has no descriptor or memory left. Wait before the next attempt.
    """
    try:
        sock, _ = listener.accept()
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise
        return None  # the connection was gone before it was accepted (accept(2): treat as EAGAIN)
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
    """The remote's address. For a Unix socket, the path of the listening end.

    Raises:
        OSError: The socket is no longer connected.
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
    # Not with the loop's sock_connect: uvloop's refuses AF_VSOCK addresses.
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
        fix="check that the other side is running and listens there (the connection is retried)",
    )


def _listen_error(address: StreamAddress, error: OSError) -> ListenError:
    return ListenError(
        f"cannot listen on {address}",
        why=error.strerror or str(error),
        fix="stop the process that uses the address, or choose another",
    )
