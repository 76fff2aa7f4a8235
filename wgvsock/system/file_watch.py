"""Notices that a file was written, replaced or removed, using inotify(7).

A path such as /etc/resolv.conf can be many things: a file that is written in place, a file that is replaced by a
rename, a symbolic link to a file of another program, or a bind mount. The file itself is therefore watched, as a bind
mount requires, and so is the name of each link on the path to it, in its directory.

A notification only says that it is time to look. Notifications may be unavailable: by default the kernel gives each
user 128 inotify instances (fs.inotify.max_user_instances).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_IN_MODIFY: Final = 0x2
_IN_ATTRIB: Final = 0x4  # sent as well when the last name is removed
_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED_FROM: Final = 0x40
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000

_CONTENT: Final = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF
_NAMES: Final = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF

_HEADER: Final = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_CHUNK: Final = 65536
_MAX_LINKS: Final = 40
"""Symbolic links that the kernel follows to reach a file (path_resolution(7))."""

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Watches one path, whether or not a file exists there.

    Args:
        path: The file.

    Raises:
        OSError: The kernel has no inotify, or this user has used up its instances.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._fd = _called(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._names: dict[int, set[bytes]] = {}  # by watch. The watch of the file itself has no names
        self._arm()

    def fileno(self) -> int:
        """The descriptor, readable when there is something to `drain`."""
        return self._fd

    def close(self) -> None:
        """Stop watching. Call it only once."""
        os.close(self._fd)

    def drain(self) -> bool:
        """Read all pending events, and watch what is at the path now.

        Returns:
            Whether any of the events concerns the file.
        """
        concerned = False
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._fd, _CHUNK):
                concerned |= any(self._concerns(*event) for event in _events(events))
        if concerned:
            self._arm()
        return concerned

    def _concerns(self, watch: int, mask: int, name: bytes) -> bool:
        # A watch that ended with its file (IN_IGNORED) was announced by the event that removed the file.
        names = self._names.get(watch)
        return bool(mask & _IN_Q_OVERFLOW) or (names is not None and (not names or not name or name in names))

    def _arm(self) -> None:
        """Watch what is at the path now, keeping the watches that still apply."""
        names: dict[int, set[bytes]] = {}
        path = self._path
        for _ in range(_MAX_LINKS):
            with contextlib.suppress(OSError):  # the directory does not exist (yet)
                names.setdefault(self._add(path.parent, _NAMES), set()).add(os.fsencode(path.name))
            try:
                path = path.parent / path.readlink()
            except OSError:
                break  # not a link: the end of the chain, whether or not a file exists
        with contextlib.suppress(OSError):
            names[self._add(path, _CONTENT)] = set()
        for watch in self._names.keys() - names.keys():
            _libc.inotify_rm_watch(self._fd, watch)
        self._names = names

    def _add(self, path: Path, mask: int) -> int:
        return _called(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Watch, mask and name of each event."""
    while len(data) >= _HEADER.size:
        watch, mask, _, length = _HEADER.unpack_from(data)
        name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0")
        data = data[_HEADER.size + length :]
        if not mask & _IN_IGNORED:
            yield watch, mask, name


def _called(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
