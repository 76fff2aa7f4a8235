"""The entry point: holds back the signals to a service before anything else is imported.

Imports, the configuration and the event loop take some tenths of a second. Meanwhile SIGUSR1 would end the process, and
SIGTERM would leave behind what it has begun.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Final

from wgvsock.runtime import process

_SERVICES: Final = (("relay", "run"), ("enclave", "run"), ("device",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock``, and return the exit status (see docs/operations.md)."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        from wgvsock.cli.entry import run

        return run(arguments)

    if any(arguments[: len(words)] == words for words in _SERVICES):
        return _run_service(run)
    return run()


def device_main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock-device``, and return the exit status."""

    def run() -> int:
        from wgvsock.cli.device import main

        return main(argv)

    return _run_service(run)


def _run_service(run: Callable[[], int]) -> int:
    process.hold_signals()
    try:
        process.forbid_core_dumps()
        gc.disable()  # until `wgvsock.runtime.memory.settle`: nothing dies of what is imported, and looking takes 15 ms
        return run()
    finally:
        gc.enable()
        process.hold_signals()  # until the end, so that no late signal changes the service's exit status
