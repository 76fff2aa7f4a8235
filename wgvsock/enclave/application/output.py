"""A pipe that the application writes to. It is drained as fast as it fills: an application never waits for a relay."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from wgvsock.telemetry.reports import StreamName

Sink = Callable[[StreamName, bytes], None]
"""Takes what was written to a stream."""

_CHUNK: Final = 65_536
"""Bytes of one read: the capacity of a pipe (pipe(7)). The data plane gets its turn between two reads."""

_MAX_REST: Final = 1 << 20
"""Bytes that are read after the process has ended: the largest capacity of a pipe. Output that another process, which
inherited the pipe, writes later is discarded."""


class OutputPipe:
    """One standard stream of one process.

    Args:
        stream: Name of the stream.
        sink: Takes the output.

    Attributes:
        stream: Name of the stream.
        writing: The child's descriptor, open until `start`.
    """

    def __init__(self, stream: StreamName, sink: Sink) -> None:
        self.stream: StreamName = stream
        self._sink = sink
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Close the child's end, which the child has inherited, and read from ours."""
        os.close(self.writing)
        self.writing = -1
        self._loop.add_reader(self._reading, self._read)

    def close(self) -> None:
        """Read what is left, and close. Idempotent."""
        if self._reading < 0:
            return
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1
        for _ in range(_MAX_REST // _CHUNK):
            if not self._read():
                break
        if self._reading >= 0:
            self._end()

    def _read(self) -> bool:
        """Read once, and return whether there may be more."""
        try:
            data = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._sink(self.stream, data)
        else:
            self._end()
        return bool(data)

    def _end(self) -> None:
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        self._reading = -1
