"""The available backends, and which of them this machine can run."""

from __future__ import annotations

from typing import Final

from lab.backend import Backend
from lab.container.backend import ContainerBackend
from lab.errors import LabError, LabUnavailableError
from lab.netns.backend import NetnsBackend
from lab.qemu.backends import GuestBackend, PairBackend
from lab.qemu.loopback import LoopbackBackend
from lab.qemu.nested import NestedBackend
from lab.qemu.vhost import VhostBackend

BACKENDS: Final[dict[str, type[Backend]]] = {
    backend.name: backend
    for backend in (
        VhostBackend,
        PairBackend,
        GuestBackend,
        LoopbackBackend,
        NestedBackend,
        ContainerBackend,
        NetnsBackend,
    )
}
"""Backends by name."""

PREFERENCE: Final = ("vhost", "pair", "guest", "netns")
"""Best first: the closer to real hardware the better. `loopback` runs wherever `pair` does, and proves less."""


def backend_class(name: str) -> type[Backend]:
    """Return the backend of a name.

    Raises:
        LabError: There is none.
    """
    try:
        return BACKENDS[name]
    except KeyError:
        raise LabError(f"there is no backend {name!r}", fix=f"choose one of {', '.join(BACKENDS)}") from None


def choose(name: str = "") -> tuple[str, str]:
    """Return the requested backend, or the best that runs here, and the reason.

    Raises:
        LabError: No backend has that name.
        LabUnavailableError: It does not run here, or none at all does.
    """
    reasons: list[str] = []
    for candidate in (name,) if name else PREFERENCE:
        reason = backend_class(candidate).unavailable()
        if reason is None:
            why = "as asked" if name else "; ".join(["the best that runs here", *reasons])
            return candidate, why
        reasons.append(f"{candidate} is {reason}")
    raise LabUnavailableError("no laboratory can run here", why="; ".join(reasons), fix="see docs/lab.md")
