"""Rules that several configurations share: consecutive ports, names, and addresses that must not overlap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Final

from wgvsock.addresses import HybridVsockAddress, Port, StreamAddress, TcpAddress, UnixAddress, VsockAddress, overlap
from wgvsock.errors import ConfigurationError
from wgvsock.settings.errors import ConflictingSettingsError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ, and no character with a meaning to nft


def next_port(address: StreamAddress, key: str) -> StreamAddress:
    """The same address, one port higher (the paper: provisioning is at the WireGuard port + 1).

    Args:
        address: The address to start from.
        key: The key that is missing, for the error.

    Raises:
        ConfigurationError: The address has no port, so that the operator has to write `key`.
    """
    match address:
        case VsockAddress(cid, port):
            return VsockAddress(cid, Port(port + 1))
        case HybridVsockAddress(path, port):
            return HybridVsockAddress(path, Port(port + 1))
        case TcpAddress(host, port):
            return TcpAddress(host, Port(port + 1))
        case UnixAddress():
            raise ConfigurationError(
                f'"{key}" is missing', why="a unix: address has no port to count up from", fix=f'add "{key}"'
            )


def check_service_name(name: str) -> None:
    """Refuse a name that cannot be part of a file name.

    Raises:
        ConfigurationError: The name is empty, longer than 64 characters, or has characters that are not allowed.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            'cannot use "name"', why="it becomes part of file names", fix="use letters, digits, dot, dash, underscore"
        )


def check_interface_name(name: str) -> None:
    """Refuse a name that the kernel or nft would not accept.

    Raises:
        ConfigurationError: The name is empty, longer than 15 characters, or has characters that are not allowed.
    """
    if not _INTERFACE.fullmatch(name):
        raise ConfigurationError(
            f"no interface can be named {name[:32]!r}",
            why="a name has 1 to 15 letters, digits, dots, dashes or underscores",
            fix='choose another, such as "wg0"',
        )


def check_apart(listeners: Mapping[str, StreamAddress]) -> None:
    """Refuse addresses if two of them overlap, so that they cannot be in use at the same time.

    Args:
        listeners: The addresses by the dotted path of their keys.

    Raises:
        ConflictingSettingsError: Two of them overlap.
    """
    for (first, one), (second, other) in itertools.combinations(listeners.items(), 2):
        if overlap(one, other):
            raise ConflictingSettingsError(
                f'cannot use "{second}"',
                key=tuple(second.split(".")),
                why=f'{other} is taken: "{first}" is {one}',
                fix="choose another port or path for one of the two",
            )
