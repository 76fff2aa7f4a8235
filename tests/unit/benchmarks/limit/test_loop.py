"""The minimal Python loop does the work whose cost it measures."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from benchmarks.limit.loop import PollLoop, Pump
from wgvsock.testing.tun import MemoryTun
from wgvsock.virtio_net import HEADER_LENGTH, ZERO_HEADER


def packet(size: int) -> bytes:
    return ZERO_HEADER + b"\x45\0" + size.to_bytes(2, "big") + bytes(16) + b"x" * (size - 20)


class Ends:
    """Two pumps on one loop, joined by a kernel stream."""

    def __init__(self, loop: PollLoop) -> None:
        self.loop = loop
        self.streams = socket.socketpair()
        self.tuns = MemoryTun(HEADER_LENGTH), MemoryTun(HEADER_LENGTH)
        for tun, stream, listening in zip(self.tuns, self.streams, (True, False), strict=True):
            stream.setblocking(False)
            Pump(loop, tun, stream, listening=listening)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends(PollLoop())
    yield made
    for each in (*made.tuns, *made.streams):
        each.close()


@pytest.mark.parametrize("size", [20, 61, 1500, 60_000])
def test_a_packet_arrives_as_it_was(ends: Ends, size: int) -> None:
    ends.tuns[0].inject(packet(size))
    ends.loop.turn()  # seals and sends
    ends.loop.turn()  # opens and writes
    assert ends.tuns[1].take() == packet(size)


def test_both_ways_and_several_at_once(ends: Ends) -> None:
    for size in (100, 200, 300):
        ends.tuns[0].inject(packet(size))
        ends.tuns[1].inject(packet(size + 1))
    ends.loop.turn()
    ends.loop.turn()
    assert [ends.tuns[1].take() for _ in range(3)] == [packet(size) for size in (100, 200, 300)]
    assert [ends.tuns[0].take() for _ in range(3)] == [packet(size) for size in (101, 201, 301)]


def test_a_stream_that_takes_no_more_holds_the_tun_up_and_nothing_is_lost() -> None:
    loop, tun = PollLoop(), MemoryTun(HEADER_LENGTH)
    ours, theirs = socket.socketpair()
    with contextlib.closing(tun), ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        Pump(loop, tun, ours, listening=True)
        sent = 0
        while select.select([], [ours], [], 0)[1]:  # until the kernel's buffer is full
            tun.inject(packet(60_000))
            sent += 1
            loop.turn()
        left = sent * (4 + 60_016 + 32)  # each with its header, padded to 16
        while left:
            left -= len(theirs.recv(left))
            if left and select.select([], [ours], [], 0)[1]:
                loop.turn()


def test_a_forged_frame_ends_it(ends: Ends) -> None:
    ends.streams[0].send((48).to_bytes(4, "big") + bytes(48))
    with pytest.raises(SystemExit, match="an invalid frame"):
        ends.loop.turn()


def test_it_ends_with_its_stream(ends: Ends) -> None:
    ends.streams[0].shutdown(socket.SHUT_RDWR)
    with pytest.raises(SystemExit):
        ends.loop.run_forever()
