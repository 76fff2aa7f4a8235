from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from lab.virtio.ring import RingError, Virtqueue, gather

ENTRIES = 8
TABLE, AVAILABLE, USED, BUFFERS = 0, 0x100, 0x200, 0x400
NEXT, WRITE = 1, 2


class Guest:
    """A driver with memory that begins at address 0, and the queue that the device makes of it."""

    def __init__(self, *, taken: int = 0) -> None:
        self.data = memoryview(bytearray(0x1000))
        struct.pack_into("<H", self.data, AVAILABLE + 2, taken)
        struct.pack_into("<H", self.data, USED + 2, taken)
        places = zip((TABLE, AVAILABLE, USED), Virtqueue.sizes(ENTRIES), strict=True)
        self.queue = Virtqueue(self, *(self.guest(*place) for place in places), taken=taken)

    def guest(self, address: int, size: int) -> memoryview:
        if address + size > len(self.data):
            raise RingError("outside")
        return self.data[address : address + size]

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.data, TABLE + 16 * index, address, length, flags, following)

    def offer(self, *heads: int) -> None:
        (index,) = struct.unpack_from("<H", self.data, AVAILABLE + 2)
        for head in heads:
            struct.pack_into("<H", self.data, AVAILABLE + 4 + 2 * (index % ENTRIES), head)
            index = (index + 1) & 0xFFFF
        struct.pack_into("<H", self.data, AVAILABLE + 2, index)

    def used(self) -> tuple[int, list[tuple[int, ...]]]:
        (index,) = struct.unpack_from("<H", self.data, USED + 2)
        return index, [struct.unpack_from("<II", self.data, USED + 4 + 8 * at) for at in range(ENTRIES)]


def write(guest: Guest, pieces: Sequence[bytes], at: int = BUFFERS) -> None:
    """Make a chain of readable buffers from descriptor 0 on."""
    for number, piece in enumerate(pieces):
        guest.data[at : at + len(piece)] = piece
        last = number == len(pieces) - 1
        guest.describe(number, at, len(piece), 0 if last else NEXT, number + 1)
        at += len(piece)


def test_a_chain_is_read_in_its_order() -> None:
    guest = Guest()
    write(guest, [b"one", b"two", b"three"])
    guest.offer(0)
    (chain,) = guest.queue.chains()
    assert chain.head == 0
    assert gather([chain], limit=11) == b"onetwothree"
    assert not chain.writable
    assert not list(guest.queue.chains())


def test_a_request_above_the_limit_is_not_gathered() -> None:
    guest = Guest()
    write(guest, [b"x" * 5, b"x" * 5])
    guest.offer(0)
    (chain,) = guest.queue.chains()
    with pytest.raises(RingError, match="10 bytes"):
        gather([chain], limit=9)


def test_an_answer_fills_the_rooms_one_after_the_other_and_says_how_much() -> None:
    guest = Guest()
    guest.describe(3, BUFFERS, 4, WRITE | NEXT, 5)
    guest.describe(5, BUFFERS + 0x100, 4, WRITE)
    guest.offer(3)
    (chain,) = guest.queue.chains()
    guest.queue.finish(chain, chain.answer(b"abcdef"))
    assert bytes(guest.data[BUFFERS : BUFFERS + 4]) == b"abcd"
    assert bytes(guest.data[BUFFERS + 0x100 : BUFFERS + 0x104]) == b"ef\0\0"
    index, entries = guest.used()
    assert (index, entries[0]) == (1, (3, 6))


def test_an_answer_larger_than_the_room_is_cut() -> None:
    guest = Guest()
    guest.describe(0, BUFFERS, 4, WRITE)
    guest.offer(0)
    (chain,) = guest.queue.chains()
    assert chain.answer(b"abcdef") == 4
    assert bytes(guest.data[BUFFERS : BUFFERS + 6]) == b"abcd\0\0"


def test_both_indices_wrap_at_16_bits() -> None:
    guest = Guest(taken=0xFFFF)
    write(guest, [b"a"])
    guest.offer(0, 0)
    for chain in guest.queue.chains():
        guest.queue.finish(chain, 0)
    assert guest.queue.taken == 1
    assert guest.used()[0] == 1


def test_a_chain_that_bites_its_tail_is_an_error() -> None:
    guest = Guest()
    guest.describe(0, BUFFERS, 1, NEXT, 1)
    guest.describe(1, BUFFERS, 1, NEXT, 0)
    guest.offer(0)
    with pytest.raises(RingError, match="no end"):
        list(guest.queue.chains())


@pytest.mark.parametrize("head", [ENTRIES, 0xFFFF])
def test_a_descriptor_outside_the_table_is_an_error(head: int) -> None:
    guest = Guest()
    guest.offer(head)
    with pytest.raises(RingError, match=f"descriptor {head}"):
        list(guest.queue.chains())


def test_a_chain_that_leaves_the_table_is_an_error() -> None:
    guest = Guest()
    guest.describe(0, BUFFERS, 1, NEXT, ENTRIES)
    guest.offer(0)
    with pytest.raises(RingError, match=f"descriptor {ENTRIES}"):
        list(guest.queue.chains())


def test_a_buffer_outside_the_memory_is_an_error() -> None:
    guest = Guest()
    guest.describe(0, 0xFFF, 2)
    guest.offer(0)
    with pytest.raises(RingError, match="outside"):
        list(guest.queue.chains())
