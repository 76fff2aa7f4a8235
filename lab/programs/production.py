"""The production command with a record of its entropy: ``production.py LOG enclave run -c F -- app args…``.

A capture at the vsock point can then be decrypted, as with a browser's key log (`lab.watch.opener`). Nothing else
changes: the command line, the transports and /dev/nsm are those of production, which itself has no such hook.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def recorded(stream: BinaryIO, source: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The source of entropy. It records each draw that can be a private key in hex, one per line."""

    def draw(size: int) -> bytes:
        drawn = source(size)
        if size == 32:
            stream.write(drawn.hex().encode() + b"\n")
        return drawn

    return draw


def main(argv: list[str]) -> int:
    """Run the command line that follows the log's path."""
    with Path(argv[0]).open("ab", buffering=0) as stream:
        os.urandom = recorded(stream, os.urandom)
        from wgvsock.cli import main as command  # only now, because modules use os.urandom as a default argument

        sys.argv = ["wgvsock", *argv[1:]]
        return command() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
