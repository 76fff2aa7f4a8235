"""Pipes that the application writes to."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.unit.control_sockets import turns_until
from wgvsock.enclave.application.output import OutputPipe


def descriptors() -> int:
    """Return the number in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Taken:
    def __init__(self) -> None:
        self.data = b""
        self.streams: set[str] = set()
        self.arrived = asyncio.Event()

    def __call__(self, stream: str, data: bytes) -> None:
        self.streams.add(stream)
        self.data += data
        self.arrived.set()


def test_what_is_written_arrives_and_what_is_left_at_the_end_too() -> None:
    async def body() -> None:
        taken = Taken()
        pipe = OutputPipe("stderr", taken)
        child = os.dup(pipe.writing)
        pipe.start()
        os.write(child, b"first")
        await taken.arrived.wait()
        os.write(child, b", last")
        pipe.close()  # the child's end is still open
        assert taken.data == b"first, last"
        assert taken.streams == {"stderr"}
        pipe.close()
        os.close(child)

    asyncio.run(body())


def test_the_end_of_the_stream_closes_it() -> None:
    async def body() -> None:
        taken = Taken()
        pipe = OutputPipe("stdout", taken)
        child = os.dup(pipe.writing)
        pipe.start()
        os.write(child, b"x")
        os.close(child)
        before = descriptors()
        await taken.arrived.wait()
        await turns_until(lambda: descriptors() < before)
        pipe.close()
        assert taken.data == b"x"

    asyncio.run(body())


def test_one_that_was_never_started_leaves_nothing() -> None:
    async def body() -> None:
        before = descriptors()
        pipe = OutputPipe("stdout", Taken())
        pipe.close()
        assert descriptors() == before

    asyncio.run(body())


def test_somebody_who_goes_on_writing_keeps_nobody() -> None:
    """A process that has the pipe from the application. At the end this much is read and no more."""

    async def body() -> None:
        total = 0
        child = -1

        def refill(_stream: str, data: bytes) -> None:
            nonlocal total
            total += len(data)
            os.write(child, bytes(4096))

        pipe = OutputPipe("stdout", refill)
        child = os.dup(pipe.writing)
        os.write(child, bytes(4096))
        pipe.start()
        pipe.close()
        assert total == 16 * 4096
        os.close(child)

    asyncio.run(body())
