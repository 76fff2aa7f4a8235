"""Structures against the offsets of include/uapi/linux/fuse.h, written out here by hand."""

from __future__ import annotations

import struct

import pytest

from lab.guest.cuse.protocol import (
    MAX_TRANSFER,
    READ_BUFFER,
    Ioctl,
    Memory,
    Opcode,
    Request,
    parse_ioctl,
    parse_request,
    reply,
    reply_error,
    reply_init,
    reply_ioctl,
    reply_ioctl_retry,
    reply_open,
)


def request_bytes(opcode: int, body: bytes = b"", unique: int = 77) -> bytes:
    """struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 4242, 0, 0) + body


def test_a_request_is_parsed() -> None:
    assert parse_request(request_bytes(39, b"body")) == Request(Opcode.IOCTL, 77, b"body")


@pytest.mark.parametrize("data", [b"", bytes(39), request_bytes(14)[:-1] + b"", request_bytes(14) + b"x"])
def test_lengths_have_to_agree(data: bytes) -> None:
    with pytest.raises(ValueError, match="request"):
        parse_request(data)


def test_an_ioctl_carries_what_was_asked_to_be_read() -> None:
    body = struct.pack("=QIIQII", 5, 2, 0xC0200A00, 0x7FFF_0000_1000, 4, 12) + b"data, and no more"
    assert parse_ioctl(body) == Ioctl(0xC0200A00, 0x7FFF_0000_1000, b"data", 12)


def test_replies_have_a_length_an_error_and_the_requests_number() -> None:
    assert reply(9, b"abc") == struct.pack("=IiQ", 19, 0, 9) + b"abc"
    assert reply_error(9, 22) == struct.pack("=IiQ", 16, -22, 9)
    assert reply_open(9) == struct.pack("=IiQQII", 32, 0, 9, 0, 0, 0)
    assert reply_ioctl(9, b"out", result=0) == struct.pack("=IiQiIII", 35, 0, 9, 0, 0, 0, 0) + b"out"


def test_a_retry_names_memory_to_read_and_to_write() -> None:
    answer = reply_ioctl_retry(9, read=[Memory(1, 2), Memory(3, 4)], write=[Memory(5, 6)])
    assert answer == struct.pack("=IiQiIII6Q", 80, 0, 9, 0, 1 << 2, 2, 1, 1, 2, 3, 4, 5, 6)


def test_init_asks_for_unrestricted_ioctls_and_names_the_device() -> None:
    request = Request(Opcode.CUSE_INIT, 1, struct.pack("=IIII", 7, 41, 0, 1))
    answer = reply_init(request, "nsm")
    major, minor, _, flags, max_read, max_write = struct.unpack_from("=IIIIII", answer, 16)
    assert (major, flags & 1) == (7, 1)
    assert minor <= 41
    assert max_read == max_write == MAX_TRANSFER
    assert answer[16 + 72 :] == b"DEVNAME=nsm\0"
    assert READ_BUFFER > MAX_TRANSFER + 80


def test_another_major_version_is_refused() -> None:
    with pytest.raises(ValueError, match="FUSE 8"):
        reply_init(Request(Opcode.CUSE_INIT, 1, struct.pack("=IIII", 8, 0, 0, 0)), "nsm")
