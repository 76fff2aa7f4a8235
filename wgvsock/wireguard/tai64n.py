"""TAI64N labels (cr.yp.to/libtai/tai64.html): the timestamp of a handshake initiation, which prevents replays.

A label has 12 bytes, big-endian: 8 bytes of 2**62 + TAI seconds, 4 bytes of nanoseconds. Compare labels as bytes.
"""

from __future__ import annotations

import struct
from typing import Final

_LABEL: Final = struct.Struct(">QI")
_UNIX_EPOCH: Final = 2**62 + 10
"""The TAI label of 1970-01-01, 10 seconds ahead of UTC. Later leap seconds do not matter for the order of labels."""
_NANOSECONDS: Final = 10**9
_GRAIN: Final = 2**25
"""About 34 ms. Timestamps are rounded down to a multiple of it, so that they offer no fine clock to a timing attack."""


def tai64n(unix_time: int) -> bytes:
    """The label of a Unix time in nanoseconds, 12 bytes."""
    seconds, nanoseconds = divmod(unix_time, _NANOSECONDS)
    return _LABEL.pack(_UNIX_EPOCH + seconds, nanoseconds)


def from_tai64n(label: bytes) -> int:
    """Inverse of `tai64n`: the Unix time, in nanoseconds, of a label of 12 bytes."""
    seconds, nanoseconds = _LABEL.unpack(label)
    return int((seconds - _UNIX_EPOCH) * _NANOSECONDS + nanoseconds)


def next_label(unix_time: int, previous: bytes) -> bytes:
    """A label that is greater than the previous one even if the clock stood still or was set back (section 5.1).

    Args:
        unix_time: The wall clock's time, in nanoseconds.
        previous: The last label sent to the same peer, 12 bytes. Empty before the first.

    Returns:
        The label, 12 bytes.
    """
    coarse = unix_time - unix_time % _GRAIN
    label = tai64n(coarse)
    return label if label > previous else tai64n(from_tai64n(previous) + _GRAIN)
