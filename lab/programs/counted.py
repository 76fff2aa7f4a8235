"""Runs a service whose tasks can be counted from outside: ``python -m lab.programs.counted FILE MODULE [ARGUMENTS…]``.

The module's ``main`` is called with the arguments. On `COUNT` the process writes its event loop's tasks to the file.
A service has no reason to report them itself, and they show a leak before memory does.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

COUNT: Final = signal.SIGRTMIN + 2
"""No service handles this signal, and glibc reserves the first two."""


def running_tasks() -> dict[str, int]:
    """Return how many tasks of the running event loop run each coroutine. Empty without a loop."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return {}
    return dict(Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks))


def write_tasks(path: Path) -> None:
    """Write them so that a reader sees all or nothing."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(running_tasks()))
    new.replace(path)


def main(argv: Sequence[str]) -> int:
    """Run the module to its end, and return its exit status."""
    path, module, *arguments = argv
    signal.signal(COUNT, lambda _number, _frame: write_tasks(Path(path)))
    status: int = importlib.import_module(module).main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
