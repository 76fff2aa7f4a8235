"""Counts repeated log lines, so that constant connection attempts do not fill the disk.

Lines are of one kind if they have the same place in the code, the same level, and errors of the same class. Strangers
often choose the other values (an address, a name, a number), so these do not make a new kind.

The first `BURST` lines of a kind pass at once. Further ones within `INTERVAL` are counted, and the interval ends with a
line that has their number and the last of them. While they keep coming, each interval has only that line. After an
interval with no more than a burst, lines pass again. Models: the kernel's printk_ratelimited and journald's
RateLimitBurst, which suppress and count, and zap's sampler, which keys by level and message.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final

BURST: Final = 30
"""Lines of a kind in an interval. Repeated attempts by hand or with back-off stay below it. A stream just below it
writes a line every two seconds, about 10 MB a day."""

INTERVAL: Final = 60.0
"""Seconds. A flood of a dozen kinds writes one line every five seconds."""

MAX_KINDS: Final = 256
"""Kinds to remember. The product has about 80 places that log. Beyond the limit, the kind whose interval began first is
dropped, and its count is written."""

FIELDS: Final = "wgvsock_fields"
"""The attribute of a record that holds its fields."""

Kind = tuple[Hashable, ...]


class Repetition:
    """Decides which lines pass, without I/O and without a clock. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._intervals: dict[Kind, _Interval] = {}  # in the order in which they began and end

    @property
    def due(self) -> float | None:
        """When the first interval with counted lines ends, or None."""
        return next((interval.end for interval in self._intervals.values() if interval.counted), None)

    def admit(self, record: logging.LogRecord, now: float) -> list[logging.LogRecord]:
        """Take a new record, and return the records to write.

        Args:
            record: The new record.
            now: The time.

        Returns:
            The counts of intervals that have ended, then the record itself unless it is counted.
        """
        told = self.ended(now)
        kind = kind_of(record)
        interval = self._intervals.get(kind)
        if interval is None:
            if len(self._intervals) >= MAX_KINDS:
                told += self._intervals.pop(next(iter(self._intervals))).told()
            interval = self._intervals[kind] = _Interval(now + INTERVAL, BURST)
        return [*told, record] if interval.passes(record) else told

    def ended(self, now: float) -> list[logging.LogRecord]:
        """End the intervals that are over, and return the records with their counts."""
        told: list[logging.LogRecord] = []
        while (kind := next(iter(self._intervals), None)) and (interval := self._intervals[kind]).end <= now:
            del self._intervals[kind]
            told += interval.told()
            if interval.counted > BURST:  # they keep coming, so there is no new burst
                self._intervals[kind] = _Interval(now + INTERVAL, 0)
        return told

    def all(self) -> list[logging.LogRecord]:
        """End all intervals, and return the records with their counts."""
        told = [line for interval in self._intervals.values() for line in interval.told()]
        self._intervals.clear()
        return told


class _Interval:
    """The lines of one kind in the current interval."""

    def __init__(self, end: float, burst: int) -> None:
        self.end = end
        self.counted = 0
        self._left = burst
        self._last: logging.LogRecord | None = None

    def passes(self, record: logging.LogRecord) -> bool:
        if self._left:
            self._left -= 1
            return True
        self.counted += 1
        self._last = record
        return False

    def told(self) -> list[logging.LogRecord]:
        """A record with the count, and the level and fields of the last line, or none if nothing was counted."""
        if self._last is None:
            return []
        last = self._last.__dict__
        fields = {**last.get(FIELDS, {}), "repeated": self.counted}
        line = logging.makeLogRecord({key: value for key, value in last.items() if key not in _OWN} | {FIELDS: fields})
        line.msg, line.args = "… and %d more like it (last: %s)", (self.counted, _message(self._last))
        return [line]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a bug in the logging call, which the first lines have reported
        return str(record.msg)


_OWN: Final = frozenset({"created", "msecs", "relativeCreated", "exc_info", "exc_text", "stack_info"})
"""Attributes that the line with the count does not copy from the last one: its time and its traceback."""


def kind_of(record: logging.LogRecord) -> Kind:
    """The kind of a record. It depends only on the program, so that strangers cannot cause new kinds."""
    values = [*(record.args if isinstance(record.args, tuple) else ()), *getattr(record, FIELDS, {}).values()]
    if record.exc_info:
        values.append(record.exc_info[1])
    errors = tuple(type(value) for value in values if isinstance(value, BaseException))
    return (record.pathname, record.lineno, record.levelno, *errors)
