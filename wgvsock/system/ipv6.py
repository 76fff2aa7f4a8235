"""IPv6 forwarding: the values that its sysctls need, and whether we can set them.

Its only switches are files below /proc/sys (ip-sysctl). They are read-only in a container, so whoever creates the
container has to set them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CONF: Final = Path("/proc/sys/net/ipv6/conf")


def switches(uplink: str, conf: Path = CONF) -> tuple[Path, Path]:
    """The files that matter for an uplink, in the order in which to write them.

    With forwarding on, the kernel ignores router advertisements unless accept_ra is 2, and the uplink's default route
    would expire.
    """
    return conf / uplink / "accept_ra", conf / "all" / "forwarding"


def wanted(switch: Path, present: str) -> str | None:
    """The value to write to a switch, or None if its present value will do."""
    if switch.name == "accept_ra":
        return None if present in {"0", "2"} else "2"  # 0: the default route does not come from router advertisements
    return None if present == "1" else "1"


def off(uplinks: Iterable[str], conf: Path = CONF) -> list[Path]:
    """The switches that need another value: the machine's, and those of existing uplinks."""
    files = dict.fromkeys((*(path for uplink in uplinks for path in switches(uplink, conf)), conf / "all/forwarding"))
    return [path for path in files if path.exists() and wanted(path, path.read_text(encoding="ascii").strip())]


def barred(uplinks: Iterable[str], conf: Path = CONF) -> tuple[str, ...]:
    """Sysctls that must be set from outside before IPv6 is forwarded. Empty if none is missing or we can set them."""
    return tuple(
        f"net.ipv6.conf.{path.parent.name}.{path.name}" for path in off(uplinks, conf) if not os.access(path, os.W_OK)
    )


def is_there(interface: str, conf: Path = CONF) -> bool:
    """Whether an interface can have IPv6 addresses: the kernel has IPv6, and ``disable_ipv6`` is 0."""
    switch = conf / interface / "disable_ipv6"
    return switch.exists() and switch.read_text(encoding="ascii").strip() == "0"


def write(switch: Path, value: str) -> None:
    """Write a sysctl unless it already has the value: it may be read-only."""
    if switch.read_text(encoding="ascii").strip() != value:
        with switch.open("r+", encoding="ascii") as file:
            file.write(value)
