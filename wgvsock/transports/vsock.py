"""AF_VSOCK stream sockets (vsock(7)): buffers, the TO_HOST flag, and peer addresses."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Final

from wgvsock.addresses import Cid, Port, VsockAddress, is_dialable
from wgvsock.transports.errors import OUT_OF_RESOURCES, VsockUnavailableError

MAX_SEND: Final = 32_000
"""Bytes of one send. Longer writes were corrupted on Nitro hosts with newer kernels."""

BUFFER_SIZE: Final = 1 << 20
"""Bytes that the peer may have in flight towards us. With the kernel's default of 256 KiB, a few hundred unread small
packets exhaust the credit, and some kernels then reset the stream. A megabyte is 1.4 ms of a 6 Gbit/s stream."""

VMADDR_FLAG_TO_HOST: Final = 1

_SOCKADDR_VM: Final = struct.Struct("=HHIIB3x")  # family, reserved, port, cid, flags (linux/vm_sockets.h)


def vsock_socket() -> socket.socket:
    """A non-blocking AF_VSOCK stream socket with its buffers set. Accepted sockets inherit them.

    Raises:
        VsockUnavailableError: The kernel has no AF_VSOCK, or a seccomp filter forbids it. Neither changes by itself.
        OSError: No descriptor or no memory is left.
    """
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise
        raise VsockUnavailableError(
            "cannot open AF_VSOCK",
            why=error.strerror or str(error),
            fix="load the vsock modules, or allow AF_VSOCK in the container's seccomp profile",
        ) from None
    # Set the limit first: a larger size is silently reduced to it. A transport without such buffers refuses both.
    # On an AF_VSOCK socket Python passes an integer as the 64 bits that the kernel wants, and does not accept bytes.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, BUFFER_SIZE)
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, BUFFER_SIZE)
    return sock


def limit_buffer(listener: socket.socket, size: int) -> None:
    """Give a listener's connections a smaller buffer than `vsock_socket` does. Call it before anybody connects.

    Args:
        listener: A listening socket. One of another family is left unchanged.
        size: Bytes that a peer may have in flight towards each connection.
    """
    if listener.family == socket.AF_VSOCK:
        with contextlib.suppress(OSError):  # as in `vsock_socket`
            listener.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, size)


def start_connect(sock: socket.socket, address: VsockAddress, *, to_host: bool) -> int:
    """Start a non-blocking connect.

    Args:
        sock: A socket from `vsock_socket`.
        address: The remote.
        to_host: Set VMADDR_FLAG_TO_HOST. A parent that itself runs vhost_vsock needs it to reach the hypervisor's side
            of its enclaves. Python's own connect cannot pass flags.

    Returns:
        The errno: usually EINPROGRESS, and EADDRNOTAVAIL for a CID that cannot be dialled.
    """
    if not is_dialable(address.cid):
        return errno.EADDRNOTAVAIL
    if not to_host:
        return sock.connect_ex((address.cid, address.port))
    import ctypes  # here: an enclave's image may lack libffi, and has no use for the flag

    sockaddr = _SOCKADDR_VM.pack(socket.AF_VSOCK, 0, address.port, address.cid, VMADDR_FLAG_TO_HOST)
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.connect(sock.fileno(), sockaddr, len(sockaddr)) else 0


def vsock_address(name: tuple[int, int]) -> VsockAddress:
    """Convert an address from getpeername() or accept()."""
    cid, port = name
    return VsockAddress(Cid(cid), Port(port))
