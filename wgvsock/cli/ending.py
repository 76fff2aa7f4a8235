"""How a command ends: an error becomes three lines, every end has an exit status, and lost output is an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from wgvsock.cli.output import print_error, put
from wgvsock.errors import WgvsockError

EXIT_INTERRUPTED: Final = 130
EXIT_READER_GONE: Final = 141
"""What a shell shows for a command that SIGINT or SIGPIPE ended: 128 plus the signal's number."""


def run_command(work: Callable[[], int]) -> int:
    """Do a command's work, and return its exit status. Only a bug escapes as an exception."""
    replace_closed_streams()
    try:
        return _run(work)
    except WgvsockError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed the pipe
        return EXIT_READER_GONE
    finally:
        _give_up_unwritten()


def _run(work: Callable[[], int]) -> int:
    try:
        status = work()
    except (SystemExit, OSError):
        put("", end="")  # argparse has printed help. Depending on its version, it ignores or raises a failure to write.
        raise
    put("", end="")  # flush the buffer
    return status


def _give_up_unwritten() -> None:
    """Redirect a stream to /dev/null if its buffer cannot be written.

    The interpreter flushes the buffers when it ends. If that fails, it replaces the exit status with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def replace_closed_streams() -> None:
    """Replace each standard stream that our caller has closed (``>&-``).

    Otherwise output would vanish without an error, errors would end up among the data, and the next descriptor to be
    opened would become the stream.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    if sys.stdout is None:  # read-only, so that writing fails as with a closed stream
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
