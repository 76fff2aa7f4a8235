"""The sliding window that accepts each transport counter once (whitepaper section 5.4.6, RFC 6479).

It is a ring of 64-bit blocks. Advancing clears whole blocks instead of shifting a bitmap, so a packet that arrives in
order costs one comparison, one block and one bit.
"""

from __future__ import annotations

from typing import Final

from wgvsock.wireguard.constants import REPLAY_BLOCK_BITS, REPLAY_BLOCKS, REPLAY_WINDOW

_BLOCK_SHIFT: Final = REPLAY_BLOCK_BITS.bit_length() - 1
_BIT_MASK: Final = REPLAY_BLOCK_BITS - 1
_RING_MASK: Final = REPLAY_BLOCKS - 1


class ReplayWindow:
    """The counters seen so far, from the greatest down to `REPLAY_WINDOW` below it."""

    __slots__ = ("_blocks", "_greatest")

    def __init__(self) -> None:
        self._blocks = [0] * REPLAY_BLOCKS
        self._greatest = 0

    def accept(self, counter: int) -> bool:
        """Record a counter. False if it is repeated, or too old to decide.

        The caller must authenticate the packet first, because a forged counter must not move the window.
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
            blocks[block & _RING_MASK] |= 1 << (counter & _BIT_MASK)
            return True
        if counter + REPLAY_WINDOW < greatest:
            return False
        slot = block & _RING_MASK
        bit = 1 << (counter & _BIT_MASK)
        if blocks[slot] & bit:
            return False
        blocks[slot] |= bit
        return True
