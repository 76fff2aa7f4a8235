"""How much Python a call runs, in lines: work that grows with a table's size shows without a clock."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import wgvsock

_OURS = f"{Path(wgvsock.__file__).parent}{os.sep}"


def effort(call: Callable[[], object]) -> int:
    """Count the lines of wgvsock's own Python that run during a call.

    Nothing else counts: asyncio's lines and those that the garbage collector runs (finalizers, and callbacks of other
    tools) depend on what this process did before.
    """
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()  # coverage's
    gc.collect()
    gc.disable()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return lines
