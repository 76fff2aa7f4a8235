"""One call of the tool: starts it, reads its output within bounds, and ends it with everything that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wgvsock.system.nitro_cli.answers import parse
from wgvsock.system.nitro_cli.errors import NitroCliError, translate

_REAPING: Final = 5.0  # seconds for a killed tool to exit: an ioctl of the driver may delay it
_LONGEST_OUTPUT: Final = 1 << 18
"""Bytes of standard output, and of standard error. Four enclaves with their images' metadata take a few KiB. The worst
text of that length takes 10 to 40 ms to parse. A thread would not help, because json holds the interpreter's lock."""
_READ: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one call of the tool.

    Attributes:
        value: Parsed standard output, or None if the call failed without a readable answer.
        failure: Why the call failed, or None if it succeeded.
    """

    value: Any
    failure: NitroCliError | None


async def call(executable: str, arguments: Sequence[str], what: str, deadline: float) -> Answer:
    """Run the tool, and read its answer.

    Args:
        executable: Name on PATH, or path.
        arguments: The tool's arguments.
        what: What the call is for, for errors.
        deadline: Seconds that it may take.

    Raises:
        NitroCliError: The tool cannot be run, did not end, printed too much, or succeeded without a readable answer.
    """
    try:
        # In its own process group: everything it starts ends with it, and a terminal's Ctrl-C is ours to handle.
        process = await asyncio.create_subprocess_exec(
            executable, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, limit=_READ, process_group=0
        )
    except OSError as error:
        raise NitroCliError(
            f"cannot {what}",
            why=f"{executable}: {error.strerror}",
            fix="install aws-nitro-enclaves-cli, or name its path in launch.nitro_cli",
        ) from None
    try:
        async with asyncio.timeout(deadline):
            stdout, stderr = await _read_bounded(process, what)
            status = await process.wait()
    except TimeoutError:
        raise NitroCliError(f"cannot {what}", why=f"nitro-cli did not end within {deadline:.0f} s") from None
    finally:
        await _end(process)
    if not status:
        return Answer(parse(stdout, what), None)
    failure = translate(what, status, stderr.decode(errors="replace"))
    try:
        return Answer(parse(stdout, what), failure)
    except NitroCliError:
        return Answer(None, failure)


async def _read_bounded(process: Process, what: str) -> tuple[bytes, bytes]:
    """Standard output and standard error, each to its end. Reading stops as soon as one is too long."""

    async def read(chunks: AsyncIterator[bytes]) -> bytes:
        content = bytearray()
        async for chunk in chunks:
            content += chunk
            if len(content) > _LONGEST_OUTPUT:
                raise NitroCliError(
                    f"cannot {what}",
                    why=f"nitro-cli printed more than {_LONGEST_OUTPUT} bytes and was stopped",
                    fix="run the command by hand, and update aws-nitro-enclaves-cli",
                )
        return bytes(content)

    reading = [asyncio.ensure_future(read(chunks)) for chunks in _pipes(process)]
    try:
        stdout, stderr = await asyncio.gather(*reading)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
    return stdout, stderr


def _pipes(process: Process) -> Iterator[AsyncIterator[bytes]]:
    """Its standard output and standard error, in chunks."""
    for stream in (process.stdout, process.stderr):
        assert stream is not None  # noqa: S101 - both are pipes
        yield _chunks(stream.read)


async def _chunks(read: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    while chunk := await read(_READ):
        yield chunk


async def _end(process: Process) -> None:
    """Kill the tool and everything it started, if it is still running, and leave nothing in the event loop."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAPING):
            for chunks in _pipes(process):
                async for _ in chunks:  # to the end: otherwise the pipe is never closed
                    pass
            await process.wait()
