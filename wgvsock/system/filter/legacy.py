"""Detects changes to the rules of ip_tables, the kernel's older packet filter, which sends no notifications."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Final

LOOK: Final = 1.0
"""Seconds between two polls. A poll costs a read and a system call for each table that exists."""

_SO_GET_INFO: Final = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_INFO: Final = struct.Struct("=32s13I")  # struct ipt_getinfo: table, hooks, 5 entries, 5 underflows, rules, bytes
_FAMILIES: Final = (
    (socket.AF_INET, socket.IPPROTO_IP, "ip_tables_names"),
    (socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names"),
)

Sizes = tuple[tuple[int, str, bytes], ...]


def sizes(proc: Path = Path("/proc/self/net")) -> Sizes:
    """Each table's number of rules, chain offsets and size in bytes. Empty if there are no tables.

    A rule that is replaced by one of the same size goes unnoticed. Only tables that exist are queried: the kernel would
    create the others.
    """
    found = []
    for family, level, names in _FAMILIES:
        with contextlib.suppress(OSError):  # no such packet filter, or we may not query it
            for name in (proc / names).read_text(encoding="ascii").split():
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    asked = struct.pack(f"{_INFO.size}s", name.encode())
                    found.append((int(family), name, _info(sock, level, asked)))
    return tuple(found)


def _info(sock: socket.socket, level: int, asked: bytes) -> bytes:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(asked, _INFO.size)
    length = ctypes.c_uint(_INFO.size)
    if libc.getsockopt(sock.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(length)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
