"""Logging set-up: one line a state change, on standard error, as ``key=value`` pairs (logfmt).

Code says ``log.info("the tunnel is up", extra=fields(interface="wg0"))``. Keys, nonces and packets are never logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_BARE: Final = re.compile(r"[A-Za-z0-9_./:@+,\[\]-]+")
_FIELDS: Final = "wgvsock_fields"


def fields(**values: object) -> dict[str, Any]:
    """Values for the ``extra`` argument of a logging call."""
    return {_FIELDS: values}


class LogfmtFormatter(logging.Formatter):
    """``time=2026-11-23T10:00:00.123Z level=info at=relay msg="the tunnel is up" interface=wg0``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs: dict[str, object] = {
            "time": time,
            "level": record.levelname.lower(),
            "at": record.name.removeprefix("wgvsock."),
            "msg": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            pairs["exception"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quote(value)}" for key, value in pairs.items())


def configure(level: str, stream: TextIO | None = None) -> None:
    """Log everything of wgvsock from a level on; other libraries from ``warning`` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("wgvsock").setLevel(level.upper())


def _quote(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if _BARE.fullmatch(text):
        return text
    # JSON leaves some characters alone that end a line or steer a terminal (U+0085, U+009B), and surrogates.
    return json.dumps(text, ensure_ascii=not text.isprintable())
