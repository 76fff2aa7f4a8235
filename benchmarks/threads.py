"""Whether a second core helps one tunnel: super-packets sealed by one thread, and by an ordered pipeline of several.

    python -m benchmarks.threads

The cipher releases the interpreter's lock from 2 KiB on. Runs alternate. The relevant figures are the ratio within a
round, and the processor time, which includes passing packets between threads.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SIZES: Final = (4_096, 16_384, 65_000)
THREADS: Final = (1, 2, 4)
ROUNDS: Final = 7

_BYTES: Final = 64 * 1024 * 1024
"""Bytes of one round: a tenth of a second on one core."""

_AHEAD: Final = 8
"""Packets in progress at a time. The tunnel's batch has four super-packets."""

_TAG: Final = 16


def inline(size: int, count: int) -> None:
    """Seal as the tunnel does: one packet after another, in place."""
    seal = ChaCha20Poly1305(bytes(32)).encrypt_into
    packet, out = memoryview(bytearray(size)), memoryview(bytearray(size + _TAG))
    for number in range(count):
        seal(number.to_bytes(12, "little"), packet, None, out)


def pipeline(threads: int, size: int, count: int) -> None:
    """Seal with threads, and await the packets in order, as a stream requires."""
    seal = ChaCha20Poly1305(bytes(32)).encrypt_into
    packet = memoryview(bytearray(size))
    outs = [memoryview(bytearray(size + _TAG)) for _ in range(_AHEAD)]
    under_way: list[Future[int]] = []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(count):
            if len(under_way) == _AHEAD:
                under_way.pop(0).result()
            nonce = number.to_bytes(12, "little")
            under_way.append(pool.submit(seal, nonce, packet, None, outs[number % _AHEAD]))
        for future in under_way:
            future.result()


def timed(step: Callable[[], None]) -> tuple[float, float]:
    """Return wall-clock and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Print for each size and number of threads: Gbit/s, the ratio to sealing inline, ms per gigabit."""
    for size in SIZES:
        count = _BYTES // size
        gigabits = count * size * 8 / 1e9
        ways: dict[str, Callable[[], None]] = {"inline": lambda size=size, count=count: inline(size, count)}  # type: ignore[misc]
        for threads in THREADS:
            ways[f"{threads} threads"] = lambda threads=threads, size=size, count=count: pipeline(threads, size, count)  # type: ignore[misc]
        rounds = [{name: timed(way) for name, way in ways.items()} for _ in range(ROUNDS)]
        for name in ways:
            rate = statistics.median(gigabits / one[name][0] for one in rounds)
            ratio = statistics.median(one["inline"][0] / one[name][0] for one in rounds)
            cost = statistics.median(1e3 * one[name][1] / gigabits for one in rounds)
            print(f"{size:>6} B, {name}: {rate:.1f} Gbit/s, {ratio:.2f} of inline, {cost:.0f} ms/Gbit", file=sys.stdout)


if __name__ == "__main__":
    main()
