"""What the commands and the services agree on, besides the keys of their JSON."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "wgvsock/v1"
"""The value of ``"schema"`` in every object. A reader that knows the value can rely on the keys. A change that would
break such a reader changes the value (docs/operations.md)."""

CLOCK_SUSPECT: Final = 5.0
"""Seconds of difference between the clocks of enclave and relay from which a warning is given. Other systems, such as
AWS's APIs, begin to reject signatures at such a difference. On a working machine, no exchange takes that long."""
