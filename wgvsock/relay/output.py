"""Writes the applications' output to the relay's standard output, so that a slow reader does not delay packets.

A full pipe blocks its writer. Therefore a separate thread writes. Lines that it cannot keep up with are dropped and
counted.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Final

MAX_WAITING: Final = 1 << 20
"""Bytes that may wait to be written: one second of output at the highest rate at which applications' output is read."""

LAST_SECONDS: Final = 2.0
"""Seconds to write the last lines when the process ends, so that a stalled reader cannot hold it up."""


class LineWriter:
    """Writes lines to a file descriptor. It may be called from any thread and does not block.

    Args:
        descriptor: The file descriptor to write to.
        limit: Maximum number of bytes that may wait.

    Attributes:
        dropped: Number of lines dropped so far.
    """

    def __init__(self, descriptor: int = 1, limit: int = MAX_WAITING) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._untold = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Queue a line, given without its line feed, for writing."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting + len(data) > self._limit or self._closed:
                self.dropped += 1
                self._untold += 1
                return
            if self._untold:
                self._lines.append(b"stream=lost %d lines were dropped: nobody read them in time\n" % self._untold)
                self._waiting += len(self._lines[-1])
                self._untold = 0
            self._lines.append(data)
            self._waiting += len(data)
            self._changed.notify()

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Write the waiting lines, for at most so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closed:
                    self._changed.wait()
                if not self._lines:
                    return
                data = b"".join(self._lines)
                self._lines.clear()
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # the reader is gone; the relay continues without it
                pass
            with self._changed:
                self._waiting -= len(data)
