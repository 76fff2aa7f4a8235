"""Recognises TCP acknowledgements that a newer one makes superfluous (ACK filtering: RFC 3449, section 5.2.1).

Acknowledgements are cumulative. If several of one connection follow each other in the interface's queue, the newest
says everything that the others do. In bulk traffic there is almost one for each super-packet, and each takes as many
steps as the super-packet itself.

Only what a receiver sends while everything arrives in order is recognised: a packet without payload whose only flag is
ACK and whose only option is the timestamp. Selective acknowledgements, ECN's echo and the end of a connection look
different. A duplicate, which reports a loss or a new window, replaces nothing, because its number is not newer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

_TCP: Final = 6
_UNFRAGMENTED: Final = frozenset({b"\x40\x00", b"\x00\x00"})
"""Fragment words of an IPv4 packet that is no fragment: with DF and without."""

_BARE: Final = (b"\x50\x10",)
_TIMED: Final = (b"\x80\x10", b"\x01\x01\x08\x0a")
"""How the TCP header continues after the acknowledgement number (RFC 9293, section 3.1): its length and the flags. With
a timestamp two no-operations, the option's kind and its length follow (RFC 7323, appendix A)."""

_IPV4: Final = "2sH2x4s2x16sI2s"
_IPV6: Final = "4sH2s40sI2s"
"""The headers: up to TOS or flow label; length; (fragment word,) TTL and protocol; addresses, ports and sequence
number; acknowledgement number; length of the TCP header and flags. IPv4's identification and checksum do not matter."""

Fields = tuple[Any, ...]
"""What decides whether an acknowledgement replaces another one: see `supersedes`."""

Unpack = Callable[[memoryview], Fields]
"""Reads the fields from a buffer that begins with an acknowledgement and its headroom."""


class Acknowledgements:
    """Recognises acknowledgements in a TUN's queue.

    Args:
        headroom: Bytes in front of each IP packet.

    Attributes:
        longest: Length of the longest packet that is recognised, headroom included, in bytes.
    """

    def __init__(self, headroom: int) -> None:
        self._layouts: dict[int, tuple[Unpack, int, int, Fields]] = {}
        for version, headers, fields in ((4, 20, _IPV4), (6, 40, _IPV6)):
            for tcp, options, ending in ((20, "", _BARE), (32, "6x4s", _TIMED)):
                unpack = struct.Struct(f">{headroom}x{fields}{options}").unpack_from
                size = 20 + tcp if version == 4 else tcp  # IPv4's length includes its header, IPv6's does not
                self._layouts[headroom + headers + tcp] = unpack, version, size, ending
        self.longest = max(self._layouts)

    def recognise(self, packet: memoryview, length: int) -> tuple[Unpack, Fields] | None:
        """Return the fields of an acknowledgement and what read them, or None for any other packet.

        Args:
            packet: A buffer that begins with the packet and its headroom.
            length: Length of both, in bytes.
        """
        layout = self._layouts.get(length)
        if layout is None:
            return None
        unpack, version, expected, ending = layout
        found = unpack(packet)
        start, size, hops = found[:3]
        if found[5:] != ending or size != expected:
            return None
        if version == 4:
            recognised = start[0] == 0x45 and hops[3] == _TCP and hops[:2] in _UNFRAGMENTED
        else:
            recognised = start[0] >> 4 == 6 and hops[0] == _TCP
        return (unpack, found) if recognised else None


def supersedes(newer: Fields, older: Fields) -> bool:
    """Whether a packet of the same length says everything that an acknowledgement does.

    It differs from it in a newer number alone. Numbers wrap around at 2**32 (RFC 9293, section 3.4).
    """
    return 0 < (newer[4] - older[4]) & 0xFFFFFFFF < 0x80000000 and newer[:4] == older[:4] and newer[5:] == older[5:]
