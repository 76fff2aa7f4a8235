"""A split virtqueue as its device sees it (Virtual I/O Device 1.2, section 2.7), on a little-endian machine.

The driver puts chains of buffers into the descriptor table and their heads into the available ring. The device answers
in the used ring. The guest writes all of it, so nothing in it is trusted: an index outside the table, a cyclic chain
and a buffer outside the guest's memory are errors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

MAX_SIZE: Final = 32768
"""Entries of a split virtqueue, always a power of two."""

_DESCRIPTOR: Final = struct.Struct("<QIHH")  # address, length, flags, next
_HEADER_SIZE: Final = 4  # flags and index, 16 bits each, of both rings
_INDEX: Final = struct.Struct("<H")
_USED: Final = struct.Struct("<II")  # head of the chain, bytes written
_NEXT: Final = 1  # VIRTQ_DESC_F_NEXT
_WRITE: Final = 2  # VIRTQ_DESC_F_WRITE


class RingError(Exception):
    """The guest has put an invalid value into a queue or a table."""


class Memory(Protocol):
    """The guest's memory."""

    def guest(self, address: int, size: int) -> memoryview:
        """Return the bytes at an address of the guest.

        Raises:
            RingError: They are not completely in its memory.
        """
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """One entry of the queue: what the driver has written, and the space for an answer."""

    head: int
    readable: tuple[memoryview, ...]
    writable: tuple[memoryview, ...]

    def answer(self, response: bytes) -> int:
        """Write a response into the driver's buffers, truncated to their size. Returns the number of bytes written."""
        rest = memoryview(response)
        for buffer in self.writable:
            piece, rest = rest[: len(buffer)], rest[len(buffer) :]
            buffer[: len(piece)] = piece
        return len(response) - len(rest)


def gather(chains: Iterable[Chain], limit: int) -> bytes:
    """Return what the driver has written in these.

    Raises:
        RingError: It is longer than `limit` bytes.
    """
    pieces = [piece for chain in chains for piece in chain.readable]
    if (size := sum(map(len, pieces))) > limit:
        raise RingError(f"a request of {size} bytes")
    return b"".join(pieces)


class Virtqueue:
    """One queue.

    Args:
        memory: Holds the buffers.
        descriptors: The descriptor table, `size` entries of 16 bytes.
        available: The available ring, at least 4 + 2 `size` bytes.
        used: The used ring, at least 4 + 8 `size` bytes.
        taken: Index of the next entry of the available ring.
    """

    def __init__(
        self, memory: Memory, descriptors: memoryview, available: memoryview, used: memoryview, *, taken: int
    ) -> None:
        self._memory = memory
        self._size = len(descriptors) // _DESCRIPTOR.size
        self._descriptors, self._available, self._used = descriptors, available, used
        # Both sides access the two indices at once: a single access each is needed, which struct does not guarantee.
        self._available_index, self._used_index = available[2:4].cast("H"), used[2:4].cast("H")
        self.taken = taken

    @staticmethod
    def sizes(entries: int) -> tuple[int, int, int]:
        """Return the bytes of the descriptor table, the available and the used ring."""
        rings = (_HEADER_SIZE + _INDEX.size * entries, _HEADER_SIZE + _USED.size * entries)
        return (_DESCRIPTOR.size * entries, *rings)

    def chains(self) -> Iterator[Chain]:
        """Yield what the driver has made available and has not been taken yet.

        Raises:
            RingError: The queue is not well-formed.
        """
        while self.taken != self._available_index[0]:
            slot = _HEADER_SIZE + self.taken % self._size * _INDEX.size
            (head,) = _INDEX.unpack_from(self._available, slot)
            self.taken = (self.taken + 1) & 0xFFFF
            yield self._chain(head)

    def finish(self, chain: Chain, written: int) -> None:
        """Give a chain back with this many bytes of answer in it."""
        index = self._used_index[0]
        _USED.pack_into(self._used, _HEADER_SIZE + index % self._size * _USED.size, chain.head, written)
        self._used_index[0] = (index + 1) & 0xFFFF  # after the entry: x86 keeps stores in order

    def _chain(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        at = head
        for _ in range(self._size):
            if at >= self._size:
                raise RingError(f"descriptor {at} of {self._size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, at * _DESCRIPTOR.size)
            (writable if flags & _WRITE else readable).append(self._memory.guest(address, length))
            if not flags & _NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            at = following
        raise RingError(f"the chain at descriptor {head} has no end")
