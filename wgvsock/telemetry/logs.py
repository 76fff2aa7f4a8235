"""Logging set-up: one line for each change of state, on standard error, as ``key=value`` pairs (logfmt).

Code logs with ``log.info("the tunnel is up", extra=fields(interface="wg0"))``. Keys, nonces and packets are never
logged. Repeated lines are counted (`wgvsock.telemetry.repetition`), and long ones are cut. Untrusted text in a line can
neither end the line nor control a terminal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from wgvsock.errors import WgvsockError
from wgvsock.telemetry.repetition import FIELDS, Repetition
from wgvsock.text import shortened

MAX_VALUE: Final = 1000
"""Characters of a message or value before escaping. Our longest has about 300. Except in very hostile cases, a line of
five values stays below the 16 KiB at which container runtimes split lines."""

MAX_TRACEBACK: Final = 6000
"""Characters of the end of a traceback, which says what happened."""

_BARE: Final = re.compile(r"[A-Za-z0-9_./:@+,\[\]-]+")


def fields(**values: object) -> dict[str, Any]:
    """Values for the ``extra`` argument of a logging call."""
    return {FIELDS: values}


def error_fields(error: WgvsockError, **values: object) -> dict[str, Any]:
    """Values for a line about an error: its code, the error and its remedy follow the other values."""
    return fields(**values, code=error.code, error=error, fix=error.fix)


class LogfmtFormatter(logging.Formatter):
    """``time=2026-11-23T10:00:00.123Z level=info at=relay msg="the tunnel is up" interface=wg0``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line, whatever the message contains."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "at": record.name.removeprefix("wgvsock."),
            "msg": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            pairs["exception"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        limits = {"exception": MAX_TRACEBACK}
        return " ".join(f"{key}={_quote(value, limits.get(key, MAX_VALUE))}" for key, value in pairs.items())


class CountingHandler(logging.StreamHandler[TextIO]):
    """Writes lines, and replaces repeated ones with a count.

    The count is written when its interval ends. If an event loop is running, a timer triggers it, otherwise the next
    line does. The end of the process writes the remaining counts.

    Args:
        stream: Where to write lines.
        clock: Monotonic seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._repetition = Repetition()
        self._alarm: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record or count it. The caller holds the handler's lock."""
        self._write(self._repetition.admit(record, self._clock()))
        self._set_alarm()

    def close(self) -> None:
        """Write the counts so far, and close the handler."""
        self.acquire()
        try:
            self._write(self._repetition.all())
        finally:
            self.release()
        super().close()

    def _write(self, lines: Iterable[logging.LogRecord]) -> None:
        for line in lines:
            super().emit(line)

    def _set_alarm(self) -> None:
        due = self._repetition.due
        if due is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._alarm is None or self._alarm[0] is not loop:
            self._alarm = loop, loop.call_later(max(0.0, due - self._clock()), self._ring, due)

    def _ring(self, due: float) -> None:
        self.acquire()
        try:
            self._alarm = None
            self._write(self._repetition.ended(due))
            self._set_alarm()
        finally:
            self.release()


def configure(level: str, stream: TextIO | None = None) -> None:
    """Log wgvsock's records from `level` on, and those of other libraries from ``warning`` on."""
    handler = CountingHandler(stream or sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("wgvsock").setLevel(level.upper())


def _quote(value: object, limit: int) -> str:
    text = shortened(f"{value:.6g}" if isinstance(value, float) else str(value), limit)
    if _BARE.fullmatch(text):
        return text
    # JSON alone would not escape surrogates and some characters that end a line or control a terminal (U+0085, U+009B).
    return json.dumps(text, ensure_ascii=not text.isprintable())
