"""How the laboratory's Relay lets packets out: as ``UPLINK`` says, by default through the kernel."""

from __future__ import annotations

import os
from typing import Final

from lab.errors import LabError
from lab.topology import PACKET_POINTS, Point

MODES: Final = ("kernel", "userspace", "auto")


def asked_for() -> str:
    """Return the mode that the environment requests. "" stands for the default.

    Raises:
        LabError: There is no such mode.
    """
    mode = os.environ.get("UPLINK", "")
    if mode not in {"", *MODES}:
        raise LabError(f"there is no uplink {mode!r}", fix=f"UPLINK is one of {', '.join(MODES)}")
    return mode


def settings() -> dict[str, dict[str, str]]:
    """Return the table for the laboratory's relay.toml."""
    mode = asked_for()
    return {"uplink": {"mode": mode}} if mode else {}


def packet_points() -> tuple[Point, ...]:
    """Return the points at which packets can be captured. Without the kernel the Relay has no wg0."""
    return tuple(point for point in PACKET_POINTS if point is not Point.RELAY_WG0 or asked_for() != "userspace")
