"""The character-device half of the FUSE protocol (include/uapi/linux/fuse.h): structures in the machine's byte order.

The kernel sends a `RequestHeader` with a body, and expects a `reply` with the same `unique`. An unrestricted ioctl
takes several rounds: the kernel does not know what the argument points to, so the daemon answers with a list of the
memory that it wants to read and write (`ioctl_retry`), and then gets the request again with those bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VERSION: Final = (7, 31)
"""Protocol version of the answers. The kernel lowers its own to it if they differ."""

MAX_TRANSFER: Final = 65536
"""Bytes of one read, write or ioctl: a request has at most 4 KiB and a response 12 KiB (NSM API)."""

READ_BUFFER: Final = 256 * 1024
"""Bytes of the daemon's read buffer. With less than `MAX_TRANSFER` and a header the kernel refuses to send."""

_UNRESTRICTED_IOCTL: Final = 1 << 0  # CUSE_UNRESTRICTED_IOCTL
_IOCTL_RETRY: Final = 1 << 2  # FUSE_IOCTL_RETRY

_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_OUT: Final = struct.Struct("=IIIIIIII40x")
_OPEN_OUT: Final = struct.Struct("=QII")
_IOCTL_IN: Final = struct.Struct("=QIIQII")
_IOCTL_OUT: Final = struct.Struct("=iIII")
_IOVEC: Final = struct.Struct("=QQ")


class Opcode(IntEnum):
    """The operations that a character device sees."""

    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FLUSH = 25
    INTERRUPT = 36
    IOCTL = 39
    POLL = 40
    CUSE_INIT = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the kernel."""

    opcode: int
    unique: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ioctl:
    """An ioctl: `argument` is an address in the caller's memory, `data` the bytes there that the daemon asked for."""

    command: int
    argument: int
    data: bytes
    out_size: int


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of the caller's memory: address and length in bytes."""

    address: int
    length: int


def parse_request(data: bytes) -> Request:
    """Parse the result of one read of /dev/cuse.

    Raises:
        ValueError: The lengths do not agree.
    """
    if len(data) < _IN_HEADER.size:
        raise ValueError("a request shorter than its header")
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(data)
    if length != len(data):
        raise ValueError(f"a request of {len(data)} bytes claims {length}")
    return Request(opcode, unique, data[_IN_HEADER.size :])


def parse_ioctl(body: bytes) -> Ioctl:
    """Parse the body of an IOCTL request."""
    _, _, command, argument, in_size, out_size = _IOCTL_IN.unpack_from(body)
    return Ioctl(command, argument, body[_IOCTL_IN.size : _IOCTL_IN.size + in_size], out_size)


def reply(unique: int, body: bytes = b"") -> bytes:
    """Return a successful answer."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body


def reply_error(unique: int, errno: int) -> bytes:
    """Return a failure. `errno` is positive, as in `errno`."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -errno, unique)


def reply_init(request: Request, device: str) -> bytes:
    """Return the answer to CUSE_INIT: the device's name, a number chosen by the kernel, unrestricted ioctls.

    Raises:
        ValueError: The kernel uses another major version.
    """
    major, _, _, _ = _INIT_IN.unpack_from(request.body)
    if major != VERSION[0]:
        raise ValueError(f"the kernel uses FUSE {major}, not {VERSION[0]}")
    out = _INIT_OUT.pack(*VERSION, 0, _UNRESTRICTED_IOCTL, MAX_TRANSFER, MAX_TRANSFER, 0, 0)
    return reply(request.unique, out + b"DEVNAME=" + device.encode() + b"\0")


def reply_open(unique: int) -> bytes:
    """Return a successful open. No handle is needed."""
    return reply(unique, _OPEN_OUT.pack(0, 0, 0))


def reply_ioctl(unique: int, out: bytes = b"", *, result: int = 0) -> bytes:
    """Return an ioctl's result, with the bytes for the memory that `reply_ioctl_retry` named, piece after piece."""
    return reply(unique, _IOCTL_OUT.pack(result, 0, 0, 0) + out)


def reply_ioctl_retry(unique: int, *, read: Sequence[Memory], write: Sequence[Memory] = ()) -> bytes:
    """Ask for the request again, with these pieces of memory read, and these prepared for writing."""
    pieces = b"".join(_IOVEC.pack(piece.address, piece.length) for piece in (*read, *write))
    return reply(unique, _IOCTL_OUT.pack(0, _IOCTL_RETRY, len(read), len(write)) + pieces)
