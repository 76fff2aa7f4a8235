"""``python3 -m lab.guest.cuse.nsm``: serve /dev/nsm in a guest and forward the bytes to the host's signer over vsock.

This reproduces the kernel's nsm driver (drivers/misc/nsm.c of Linux): the ioctl number, the structure, the limits and
the error numbers. The signer interprets the requests. No key is in the guest.

One connection to the signer is one boot of the enclave: extended PCRs last until the daemon ends.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lab.guest.cuse import protocol
from lab.guest.cuse.protocol import Ioctl, Memory, Opcode, Request

SIGNER_PORT: Final = 9001
"""vsock port of the host on which `lab.nsm.server` is reached."""

NSM_IOCTL: Final = 0xC0200A00
"""``_IOWR(0x0A, 0, struct nsm_raw)``."""

REQUEST_LIMIT: Final = 0x1000
RESPONSE_LIMIT: Final = 0x3000

_NSM_RAW: Final = struct.Struct("=QQQQ")  # request address and length, response address and length
_LENGTH: Final = struct.Struct(">I")
_SIGNER_TIMEOUT: Final = 60.0  # seconds: emulated processors are slow, and the client has its own deadline

Forward = Callable[[bytes], bytes]


class NsmFile:
    """Answers the requests that the kernel makes for /dev/nsm.

    Args:
        forward: Returns the security module's response to a request. Raises OSError.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def handle(self, request: Request) -> bytes | None:
        """Return the reply to write back, or None if none is expected."""
        match request.opcode:
            case Opcode.CUSE_INIT:
                return protocol.reply_init(request, "nsm")
            case Opcode.OPEN:
                return protocol.reply_open(request.unique)
            case Opcode.RELEASE | Opcode.FLUSH:
                return protocol.reply(request.unique)
            case Opcode.IOCTL:
                return self._ioctl(request.unique, protocol.parse_ioctl(request.body))
            case Opcode.INTERRUPT:
                return None  # the interrupted request is still answered
            case _:
                return protocol.reply_error(request.unique, errno.ENOSYS)

    def _ioctl(self, unique: int, ioctl: Ioctl) -> bytes:
        if ioctl.command != NSM_IOCTL:
            return protocol.reply_error(unique, errno.EINVAL)
        structure = Memory(ioctl.argument, _NSM_RAW.size)
        if not ioctl.data:
            return protocol.reply_ioctl_retry(unique, read=[structure])
        request_address, request_length, response_address, response_length = _NSM_RAW.unpack_from(ioctl.data)
        if request_length > REQUEST_LIMIT:
            return protocol.reply_error(unique, errno.EMSGSIZE)
        room = min(response_length, RESPONSE_LIMIT)
        request = ioctl.data[_NSM_RAW.size :]
        if not request:
            if request_length == 0:
                return protocol.reply_error(unique, errno.EINVAL)
            return protocol.reply_ioctl_retry(
                unique,
                read=[structure, Memory(request_address, request_length)],
                write=[structure, Memory(response_address, room)],
            )
        try:
            response = self._forward(request)
        except OSError as error:
            return protocol.reply_error(unique, error.errno or errno.EIO)
        response = response[:room]  # a buffer that is too small gets a truncated response, as from the driver
        raw = _NSM_RAW.pack(request_address, request_length, response_address, len(response))
        return protocol.reply_ioctl(unique, raw + response)


class SignerConnection:
    """A connection to the signer. Requests and responses are preceded by their length, four bytes, big-endian."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def request(self, request: bytes) -> bytes:
        """Return the response to a request.

        Raises:
            OSError: The signer is gone, slow, or sends more than a response can hold.
        """
        self._sock.sendall(_LENGTH.pack(len(request)) + request)
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        if length > RESPONSE_LIMIT:
            raise OSError(errno.EIO, "the signer's response is too long")
        return self._receive(length)

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            chunk = self._sock.recv(length - len(data))
            if not chunk:
                raise OSError(errno.EIO, "the signer closed the connection")
            data += chunk
        return data


def serve(device: int, file: NsmFile) -> None:
    """Answer the kernel until the device goes away."""
    while True:
        try:
            data = os.read(device, protocol.READ_BUFFER)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:  # ENOENT: the request was interrupted
                continue
            raise
        answer = file.handle(protocol.parse_request(data))
        if answer is not None:
            try:
                os.write(device, answer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the caller was killed in the meantime
                    raise


def main(argv: Sequence[str]) -> int:
    """Run the module."""
    parser = argparse.ArgumentParser(prog="lab.guest.cuse.nsm")
    parser.add_argument("--cid", type=int, default=socket.VMADDR_CID_HOST, help="address of the signer")
    parser.add_argument("--port", type=int, default=SIGNER_PORT)
    arguments = parser.parse_args(argv)
    signer = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    signer.settimeout(_SIGNER_TIMEOUT)
    signer.connect((arguments.cid, arguments.port))
    if not Path("/dev/cuse").exists():
        subprocess.run(["modprobe", "cuse"], check=True)
    serve(os.open("/dev/cuse", os.O_RDWR | os.O_CLOEXEC), NsmFile(SignerConnection(signer).request))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
