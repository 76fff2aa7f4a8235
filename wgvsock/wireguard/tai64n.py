"""TAI64N labels (cr.yp.to/libtai/tai64.html): the timestamp of a handshake initiation, which stops replays.

12 bytes, big-endian: 8 bytes of 2**62 + TAI seconds, 4 bytes of nanoseconds. Labels order as byte strings.
"""

from __future__ import annotations

import struct
from typing import Final

_LABEL: Final = struct.Struct(">QI")
_UNIX_EPOCH: Final = 2**62 + 10
"""The TAI label of 1970-01-01: 10 seconds ahead of UTC; leap seconds since then do not matter to a label's order."""
_NANOSECONDS: Final = 10**9
_GRAIN: Final = 2**25
"""About 34 ms. Timestamps are rounded down to this, so that they give away no fine clock to a timing attack."""


def tai64n(unix_time: int) -> bytes:
    """The label of a Unix time in nanoseconds, 12 bytes."""
    seconds, nanoseconds = divmod(unix_time, _NANOSECONDS)
    return _LABEL.pack(_UNIX_EPOCH + seconds, nanoseconds)


def from_tai64n(label: bytes) -> int:
    """Inverse of `tai64n`: Unix time in nanoseconds."""
    seconds, nanoseconds = _LABEL.unpack(label)
    return int((seconds - _UNIX_EPOCH) * _NANOSECONDS + nanoseconds)


def next_label(unix_time: int, previous: bytes) -> bytes:
    """A label that is greater than the previous one even if the clock stood still or was set back (section 5.1).

    Args:
        unix_time: What the wall clock says, in nanoseconds.
        previous: The last label sent to the same peer; empty before the first.
    """
    coarse = unix_time - unix_time % _GRAIN
    label = tai64n(coarse)
    return label if label > previous else tai64n(from_tai64n(previous) + _GRAIN)
