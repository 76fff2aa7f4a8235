"""The directory in which running services keep their state and their control sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Final

RUNTIME_DIRECTORY: Final = "/run/wgvsock"
"""Emptied by a boot. Nothing that its files describe survives one."""


def control_socket_path(directory: str, name: str) -> str:
    """The path of a service's control socket, in its runtime directory."""
    return str(Path(directory) / f"{name}.sock")
