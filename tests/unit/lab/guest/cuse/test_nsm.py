"""`Caller` plays the kernel: it has memory, and repeats an ioctl as fs/fuse/ioctl.c does."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from lab.guest.cuse.nsm import NSM_IOCTL, REQUEST_LIMIT, RESPONSE_LIMIT, NsmFile, SignerConnection
from lab.guest.cuse.protocol import Opcode, Request

STRUCTURE, REQUEST, RESPONSE = 0x1000, 0x2000, 0x10000


class Caller:
    """A process with some memory that makes an ioctl."""

    def __init__(self, file: NsmFile) -> None:
        self.file = file
        self.memory = bytearray(0x20000)
        self.rounds = 0

    def ioctl(self, request: bytes, *, room: int = RESPONSE_LIMIT, command: int = NSM_IOCTL) -> int | bytes:
        """Return the response, or the error's number."""
        self.memory[REQUEST : REQUEST + len(request)] = request
        self.memory[STRUCTURE : STRUCTURE + 32] = struct.pack("=QQQQ", REQUEST, len(request), RESPONSE, room)
        data, out_size = b"", 0
        write: list[tuple[int, int]] = []
        while True:
            self.rounds += 1
            body = struct.pack("=QIIQII", 0, 2, command, STRUCTURE, len(data), out_size) + data
            answer = self.file.handle(Request(Opcode.IOCTL, 5, body))
            assert answer is not None
            _, error, unique = struct.unpack_from("=IiQ", answer)
            assert unique == 5
            if error:
                return -int(error)
            _, flags, reads, writes = struct.unpack_from("=iIII", answer, 16)
            if not flags & 4:
                return self._finish(answer[32:], write)
            pieces = [struct.unpack_from("=QQ", answer, 32 + 16 * at) for at in range(reads + writes)]
            data = b"".join(bytes(self.memory[at : at + length]) for at, length in pieces[:reads])
            write = pieces[reads:]
            out_size = sum(length for _, length in write)

    def _finish(self, out: bytes, write: list[tuple[int, int]]) -> bytes:
        for at, length in write:
            piece, out = out[:length], out[length:]
            self.memory[at : at + len(piece)] = piece
        assert not out
        request, request_length, response, length = struct.unpack_from("=QQQQ", self.memory, STRUCTURE)
        assert (request, response) == (REQUEST, RESPONSE)
        assert request_length > 0
        return bytes(self.memory[RESPONSE : RESPONSE + length])


def caller(forward: Callable[[bytes], bytes] = lambda request: b"re:" + request) -> Caller:
    return Caller(NsmFile(forward))


def test_an_ioctl_takes_two_retry_rounds_and_brings_the_response() -> None:
    ours = caller()
    assert ours.ioctl(b"request") == b"re:request"
    assert ours.rounds == 3


def test_a_small_buffer_gets_a_truncated_response_as_from_the_driver() -> None:
    assert caller().ioctl(b"request", room=5) == b"re:re"


def test_the_largest_request_and_response_pass() -> None:
    ours = caller(lambda request: request * 3)
    assert ours.ioctl(b"x" * REQUEST_LIMIT) == b"x" * RESPONSE_LIMIT


def test_a_buffer_larger_than_any_response_is_not_written_beyond_the_limit() -> None:
    assert caller(lambda request: request * 4).ioctl(b"x" * REQUEST_LIMIT, room=0xF000) == b"x" * RESPONSE_LIMIT


@pytest.mark.parametrize(
    ("request_bytes", "command", "number"),
    [
        (b"x" * (REQUEST_LIMIT + 1), NSM_IOCTL, errno.EMSGSIZE),
        (b"x", NSM_IOCTL + 1, errno.EINVAL),
        (b"", NSM_IOCTL, errno.EINVAL),
    ],
)
def test_error_numbers_are_the_drivers(request_bytes: bytes, command: int, number: int) -> None:
    assert caller().ioctl(request_bytes, command=command) == number


@pytest.mark.parametrize(
    ("error", "number"), [(OSError(errno.EPIPE, "gone"), errno.EPIPE), (TimeoutError("slow"), errno.EIO)]
)
def test_a_signer_that_fails_fails_the_ioctl(error: OSError, number: int) -> None:
    def forward(_: bytes) -> bytes:
        raise error

    assert caller(forward).ioctl(b"request") == number


def test_the_other_operations_of_a_device() -> None:
    file = NsmFile(lambda request: request)
    init = file.handle(Request(Opcode.CUSE_INIT, 1, struct.pack("=IIII", 7, 41, 0, 1)))
    assert init is not None
    assert b"DEVNAME=nsm\0" in init
    for opcode in (Opcode.OPEN, Opcode.FLUSH, Opcode.RELEASE):
        answer = file.handle(Request(opcode, 2, bytes(24)))
        assert answer is not None
        assert struct.unpack_from("=IiQ", answer)[1:] == (0, 2)
    assert file.handle(Request(Opcode.INTERRUPT, 3, bytes(8))) is None
    refused = file.handle(Request(Opcode.READ, 4, bytes(40)))
    assert refused is not None
    assert struct.unpack_from("=IiQ", refused)[1] == -errno.ENOSYS


def exchange(answer: bytes) -> bytes:
    """Return what `SignerConnection` makes of a signer's bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        response = SignerConnection(ours).request(b"request")
        assert theirs.recv(100) == b"\0\0\0\x07request"
        return response


def test_requests_travel_behind_their_length() -> None:
    assert exchange(b"\0\0\0\x03yes") == b"yes"


@pytest.mark.parametrize("answer", [b"", b"\0\0", b"\0\0\0\x03ye", b"\0\0\x30\x01" + bytes(0x3001)])
def test_a_broken_signer_is_an_io_error(answer: bytes) -> None:
    with pytest.raises(OSError, match="signer") as caught:
        exchange(answer)
    assert caught.value.errno == errno.EIO


def test_a_response_may_come_in_pieces() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def answer_slowly() -> None:
            theirs.recv(100)
            for byte in b"\0\0\0\x04four":
                theirs.send(bytes([byte]))

        thread = threading.Thread(target=answer_slowly)
        thread.start()
        assert SignerConnection(ours).request(b"x") == b"four"
        thread.join()
