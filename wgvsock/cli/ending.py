"""How a command ends: errors become three lines, every end an exit status, and no lost output is passed over."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from wgvsock.cli.output import print_error, put
from wgvsock.errors import WgvsockError

EXIT_INTERRUPTED: Final = 130
EXIT_READER_GONE: Final = 141
"""What a shell shows for a command that SIGINT or SIGPIPE ended: 128 and the signal's number."""


def run_command(work: Callable[[], int]) -> int:
    """Do a command's work; its exit status, whatever ends it. Only a bug leaves as an exception."""
    replace_closed_streams()
    try:
        return _run(work)
    except WgvsockError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough
        return EXIT_READER_GONE


def _run(work: Callable[[], int]) -> int:
    try:
        return work()
    except (SystemExit, OSError):
        put("", end="")  # argparse has printed help; that this did not arrive it passes over, or as of old lets through
        raise


def replace_closed_streams() -> None:
    """Put something in the place of a standard stream that our caller has closed (``>&-``).

    What is printed would vanish without an error otherwise, errors would be printed among the data, and the next
    descriptor that is opened would be taken for the stream.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    if sys.stdout is None:  # read-only: writing to it fails as writing to the closed one would
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
