"""Which backends there are, and which of them this machine can run."""

from __future__ import annotations

from typing import Final

from lab.errors import LabError
from lab.netns.backend import NetnsBackend

BACKENDS: Final = {"netns": NetnsBackend}


def backend_class(name: str) -> type[NetnsBackend]:
    """The backend of a name.

    Raises:
        LabError: There is none.
    """
    try:
        return BACKENDS[name]
    except KeyError:
        raise LabError(f"there is no backend {name!r}", fix=f"choose one of {', '.join(BACKENDS)}") from None
