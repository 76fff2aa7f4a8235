"""An application that writes bursts of output: a burst of lines for each SIGHUP. Standard library only.

    python3 chatter.py --bytes 100000000

It writes as fast as it is read, in pieces as large as a pipe, and prints `written` after each burst. With
``--elsewhere`` the bursts go to a process that discards them, which shows the cost of writing alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from typing import Final

LINE: Final = b"y" * 99 + b"\n"

_PIECE: Final = LINE * 655
"""Just below the 64 KiB capacity of a pipe (pipe(7))."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however few the kernel accepts at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def burst(descriptor: int, size: int) -> None:
    """Write whole lines of at least `size` bytes in all, and a final line that says so."""
    written = 0
    while written < size:
        write_all(descriptor, _PIECE)
        written += len(_PIECE)
    write_all(descriptor, b"written %d bytes\n" % written)


def _nobody() -> int:
    """Return a pipe that `cat` drains. It ends with this process."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None  # noqa: S101 - of a pipe
    return os.dup(child.stdin.fileno())


def main(argv: list[str]) -> None:
    """Write bursts until killed."""
    parser = argparse.ArgumentParser(prog="chatter.py")
    parser.add_argument("--bytes", type=int, required=True, help="size of each burst")
    parser.add_argument("--elsewhere", action="store_true", help="write to another process instead of standard output")
    arguments = parser.parse_args(argv)
    where = _nobody() if arguments.elsewhere else 1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    write_all(1, b"waiting\n")
    while True:
        signal.sigwait({signal.SIGHUP})
        burst(where, arguments.bytes)


if __name__ == "__main__":
    main(sys.argv[1:])
