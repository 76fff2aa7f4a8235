"""The sliding window that accepts each transport counter once (whitepaper section 5.4.6, RFC 6479).

A ring of 64-bit blocks: advancing clears whole blocks instead of shifting a bitmap, so a packet in order costs one
compare, one block and one bit.
"""

from __future__ import annotations

from typing import Final

from wgvsock.wireguard.constants import REPLAY_BLOCK_BITS, REPLAY_BLOCKS, REPLAY_WINDOW

_BLOCK_SHIFT: Final = REPLAY_BLOCK_BITS.bit_length() - 1
_BIT_MASK: Final = REPLAY_BLOCK_BITS - 1
_RING_MASK: Final = REPLAY_BLOCKS - 1


class ReplayWindow:
    """Counters that were seen, from the greatest back to `REPLAY_WINDOW` below it."""

    __slots__ = ("_blocks", "_greatest")

    def __init__(self) -> None:
        self._blocks = [0] * REPLAY_BLOCKS
        self._greatest = 0

    def accept(self, counter: int) -> bool:
        """Record an authenticated counter; False when it is a repetition or too old to tell.

        The caller authenticates the packet first: a forged counter must not move the window.
        """
        blocks = self._blocks
        greatest = self._greatest
        block = counter >> _BLOCK_SHIFT
        if counter > greatest:
            top = greatest >> _BLOCK_SHIFT
            if block != top:
                for passed in range(max(top + 1, block - _RING_MASK), block + 1):
                    blocks[passed & _RING_MASK] = 0
            self._greatest = counter
        elif counter + REPLAY_WINDOW < greatest:
            return False
        slot = block & _RING_MASK
        bit = 1 << (counter & _BIT_MASK)
        if blocks[slot] & bit:
            return False
        blocks[slot] |= bit
        return True
