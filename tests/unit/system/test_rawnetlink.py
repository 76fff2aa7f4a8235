"""Netlink messages by hand: attributes, acknowledgements, dumps."""

from __future__ import annotations

import errno
import socket
import struct
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.system.rawnetlink import RawNetlink, attribute, attributes


class FakeNetlinkSocket:
    """Answers each request with the next list of datagrams."""

    answers: ClassVar[list[list[bytes]]] = []
    sent: ClassVar[list[bytes]] = []

    def __init__(self, *arguments: int) -> None:
        self.arguments = arguments
        self.waiting: list[bytes] = []
        self.closed = False

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        self.waiting = self.answers.pop(0)

    def recv(self, size: int) -> bytes:
        return self.waiting.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeNetlinkSocket]:
    monkeypatch.setattr("wgvsock.system.rawnetlink.socket.socket", FakeNetlinkSocket)
    FakeNetlinkSocket.answers, FakeNetlinkSocket.sent = [], []
    return FakeNetlinkSocket


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + bytes(-len(body) % 4)


ACKNOWLEDGED = message(2, struct.pack("=i", 0) + bytes(16))
DONE = message(3, struct.pack("=i", 0))


def test_a_change_is_acknowledged(kernel: type[FakeNetlinkSocket]) -> None:
    kernel.answers = [[ACKNOWLEDGED]]
    with RawNetlink(socket.NETLINK_ROUTE) as channel:
        channel.change(19, b"body")
    assert kernel.sent == [struct.pack("=IHHII", 20, 19, 0x5, 1, 0) + b"body"]


def test_a_refusal_is_an_os_error(kernel: type[FakeNetlinkSocket]) -> None:
    kernel.answers = [[message(2, struct.pack("=i", -errno.EPERM))]]
    with RawNetlink(socket.NETLINK_ROUTE) as channel, pytest.raises(PermissionError):
        channel.change(19, b"")


def test_an_unknown_errno(kernel: type[FakeNetlinkSocket]) -> None:
    kernel.answers = [[message(2, struct.pack("=i", -524))]]
    with RawNetlink(socket.NETLINK_ROUTE) as channel, pytest.raises(OSError, match="unknown error"):
        channel.change(19, b"")


def test_a_dump_ends_with_done(kernel: type[FakeNetlinkSocket]) -> None:
    kernel.answers = [[message(16, b"one") + message(16, b"more"), message(16, b"3"), DONE]]
    with RawNetlink(12) as channel:
        assert list(channel.dump(1, b"")) == [b"one", b"more", b"3"]


def test_a_dump_that_is_refused(kernel: type[FakeNetlinkSocket]) -> None:
    kernel.answers = [[message(2, struct.pack("=i", -errno.ENOENT))]]
    with RawNetlink(12) as channel, pytest.raises(FileNotFoundError):
        list(channel.dump(1, b""))


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20))))
def test_attributes_read_back_the_same(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(attributes(data)) == pairs


@given(st.binary(max_size=100))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    for kind, value in attributes(data):
        assert 0 <= kind <= 0x3FFF
        assert len(value) < len(data)


def test_flags_are_no_part_of_the_type() -> None:
    assert list(attributes(attribute(0x8000 | 4, b"x"))) == [(4, b"x")]
