"""The production command with its entropy written down: ``production.py LOG enclave run -c F -- app args…``.

A capture at the vsock point can then be opened, as with a browser's key log (`lab.opener`). Nothing else is changed:
the command line, the transports and /dev/nsm are what production has, and production itself has no such hook.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def recorded(stream: BinaryIO, source: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The source of entropy, with each draw that can be a private key written down in hex, one a line."""

    def draw(size: int) -> bytes:
        drawn = source(size)
        if size == 32:
            stream.write(drawn.hex().encode() + b"\n")
        return drawn

    return draw


def main(argv: list[str]) -> int:
    """Run the command line behind the log's path."""
    with Path(argv[0]).open("ab", buffering=0) as stream:
        os.urandom = recorded(stream, os.urandom)
        from wgvsock.cli import main as command  # only now, as modules take os.urandom for a default argument

        sys.argv = ["wgvsock", *argv[1:]]
        return command() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
