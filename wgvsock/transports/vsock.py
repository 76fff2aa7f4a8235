"""AF_VSOCK stream sockets (vsock(7)): buffers, the TO_HOST flag, and what a peer's CID is."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import Final

from wgvsock.addresses import Cid, Port, VsockAddress
from wgvsock.transports.errors import VsockUnavailableError

MAX_SEND: Final = 32_000
"""Bytes of one send. Longer writes were corrupted on Nitro hosts with newer kernels."""

BUFFER_SIZE: Final = 1 << 20
"""Bytes the peer may have in flight towards us. At the kernel's default of 256 KiB, a few hundred unread small packets
exhaust the credit and some kernels then reset the stream; a megabyte is 1.4 ms of a 6 Gbit/s stream."""

VMADDR_FLAG_TO_HOST: Final = 1

_SOCKADDR_VM: Final = struct.Struct("=HHIIB3x")  # family, reserved, port, cid, flags (linux/vm_sockets.h)


def vsock_socket() -> socket.socket:
    """A non-blocking AF_VSOCK stream socket with its buffers set; an accepted socket inherits them.

    Raises:
        VsockUnavailableError: The kernel has no AF_VSOCK, or a seccomp filter forbids it.
    """
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise VsockUnavailableError(
            "cannot open AF_VSOCK",
            why=error.strerror or str(error),
            fix="load the vsock modules, or allow AF_VSOCK in the container's seccomp profile",
        ) from None
    # The limit first: a size above it is cut down silently. A transport that has no buffers to set refuses both.
    # On an AF_VSOCK socket Python passes an integer as the 64 bits that the kernel wants, and takes no bytes.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, BUFFER_SIZE)
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, BUFFER_SIZE)
    return sock


def start_connect(sock: socket.socket, address: VsockAddress, *, to_host: bool) -> int:
    """Begin a non-blocking connect; the errno, EINPROGRESS as a rule.

    Args:
        sock: A socket of `vsock_socket`.
        address: Where to.
        to_host: Set VMADDR_FLAG_TO_HOST, which a parent that itself runs vhost_vsock needs to reach its enclaves'
            hypervisor side. Python's own connect has no way to pass flags.
    """
    if not to_host:
        return sock.connect_ex((address.cid, address.port))
    sockaddr = _SOCKADDR_VM.pack(socket.AF_VSOCK, 0, address.port, address.cid, VMADDR_FLAG_TO_HOST)
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.connect(sock.fileno(), sockaddr, len(sockaddr)) else 0


def vsock_address(name: tuple[int, int]) -> VsockAddress:
    """The address that getpeername() or accept() reports."""
    cid, port = name
    return VsockAddress(Cid(cid), Port(port))
