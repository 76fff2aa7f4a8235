"""The production command with its entropy written down: ``production.py LOG enclave run -c F -- app args…``.

A capture at the vsock point can then be opened, as with a browser's key log (`lab.opener`). Nothing else is changed:
the command line, the transports and /dev/nsm are what production has, and production itself has no such hook.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lab.enclave_agent import EntropyLog


def main(argv: list[str]) -> int:
    """Run the command line behind the log's path."""
    with Path(argv[0]).open("wb", buffering=0) as stream:
        os.urandom = EntropyLog(stream, os.urandom)
        from wgvsock.cli import main as command  # only now, as modules take os.urandom for a default argument

        sys.argv = ["wgvsock", *argv[1:]]
        return command() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
