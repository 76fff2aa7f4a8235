"""Doubles and helpers for tests of code that embeds wgvsock: no network, no sleeping, no entropy.

`ManualClock` and `SeededRandom` replace time and entropy. `DevicePair` and `Eavesdropper` replace a network.
`MemoryTun` and `MemoryTransport` replace a kernel.
"""

from wgvsock.testing.clock import ManualClock, SeededRandom
from wgvsock.testing.loop import JumpingLoop, without_waiting
from wgvsock.testing.pair import DevicePair, Eavesdropper
from wgvsock.testing.transport import MemoryTransport
from wgvsock.testing.tun import MemoryTun

__all__ = [
    "DevicePair",
    "Eavesdropper",
    "JumpingLoop",
    "ManualClock",
    "MemoryTransport",
    "MemoryTun",
    "SeededRandom",
    "without_waiting",
]
