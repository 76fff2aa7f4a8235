"""A crash-safe record of what we changed on this machine, so that all of it can be taken back.

Every change is written down before it is made: a process that is killed in between leaves a record whose undoing does
nothing. The next start of the same name inherits the record. It makes its own changes, which keep the values of before
the first of them, and then undoes what it inherited and no longer needs: nothing flickers between two runs.

The record is one JSON file, mode 0600, replaced atomically. It survives a process, not a boot: what it describes does
not survive one either.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from wgvsock.errors import WgvsockError
from wgvsock.system.errors import AlreadyRunningError, JournalError

_SCHEMA: Final = "wgvsock/journal/1"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NETWORK_NAMESPACE: Final = Path("/proc/self/ns/net")


@dataclass(frozen=True, slots=True)
class Undo:
    """How to take one change back.

    Attributes:
        kind: Names the function that does it.
        target: What was changed: an interface, a file, a table.
        value: What it was before, as JSON knows it.
        in_namespace: The change lives in the network namespace, and is gone when that is.
    """

    kind: str
    target: str
    value: Any = None
    in_namespace: bool = True


Record = Callable[[Undo], Undo]
"""Writes an undo down, right before its change is made, and returns the one that now stands for that target: an
earlier one, when the target was changed before."""

Performer = Callable[[str, Any], Awaitable[None]]
"""Takes a change back, from its target and value. It has to succeed when there is nothing (left) to take back."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a record is about: entries of another boot or network namespace describe nothing that still exists."""

    boot_id: str
    network_namespace: str

    @classmethod
    def current(cls) -> Place:
        """The running kernel and this process's network namespace."""
        return cls(_BOOT_ID.read_text(encoding="ascii").strip(), str(_NETWORK_NAMESPACE.readlink()))


class Journal:
    """The changes of one service on this machine: ``open``, ``record``…, ``undo_inherited``, ``undo_all``, ``close``.

    Args:
        directory: Runtime directory, made with mode 0700 when it is missing.
        name: Name of the service; one process at a time holds it.
        performers: The functions that take changes back, by `Undo.kind`.
        place: Replaces the current boot and namespace in tests.
    """

    def __init__(
        self, directory: str, name: str, performers: Mapping[str, Performer], *, place: Place | None = None
    ) -> None:
        self._path = Path(directory) / f"{name}.json"
        self._lock_path = Path(directory) / f"{name}.lock"
        self._name = name
        self._performers = performers
        self._place = place or Place.current()
        self._changes: dict[tuple[str, str], Undo] = {}
        self._inherited: set[tuple[str, str]] = set()
        self._lock: int | None = None

    @property
    def changes(self) -> tuple[Undo, ...]:
        """What was changed and not taken back, oldest first."""
        return tuple(self._changes.values())

    def open(self) -> int:
        """Take the name's lock and inherit what an earlier process left; the number of its changes.

        Raises:
            AlreadyRunningError: Another process holds the lock.
            JournalError: The directory cannot be used, or the record is none of ours.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise AlreadyRunningError(
                f'cannot start "{self._name}"',
                why=f"another process of that name runs, and holds {self._lock_path}",
                fix='stop it first, or give this one another "name" or "runtime_directory"',
            ) from None
        self._changes = {(undo.kind, undo.target): undo for undo in self._read()}
        self._inherited = set(self._changes)
        return len(self._inherited)

    def record(self, undo: Undo) -> Undo:
        """Write an undo down, before its change is made; see `Record`.

        Raises:
            JournalError: The file cannot be written; the change must not be made then.
        """
        key = (undo.kind, undo.target)
        self._inherited.discard(key)
        if key not in self._changes:
            self._changes[key] = undo
            self._write()
        return self._changes[key]

    async def undo_inherited(self) -> list[WgvsockError]:
        """Take back what an earlier process changed and this one did not; what failed, as in `undo_all`."""
        inherited, self._inherited = self._inherited, set()
        return await self._undo([undo for key, undo in self._changes.items() if key in inherited])

    async def undo(self, kind: str) -> list[WgvsockError]:
        """Take all changes of one kind back; what failed, as in `undo_all`."""
        return await self._undo([undo for undo in self._changes.values() if undo.kind == kind])

    async def undo_all(self) -> list[WgvsockError]:
        """Take everything back, newest first; what failed is returned, stays on record and does not stop the rest."""
        return await self._undo(list(self._changes.values()))

    def close(self) -> None:
        """Give the name back. Idempotent."""
        if self._lock is not None:
            # The lock file stays: removing it would let two processes lock two files of the same name.
            os.close(self._lock)
            self._lock = None

    async def _undo(self, undos: list[Undo]) -> list[WgvsockError]:
        failed: list[WgvsockError] = []
        for undo in reversed(undos):
            try:
                await self._performers[undo.kind](undo.target, undo.value)
            except WgvsockError as error:
                failed.append(error)  # it stays on record: the next start tries again
            else:
                del self._changes[undo.kind, undo.target]
        self._write()
        return failed

    def _read(self) -> list[Undo]:
        try:
            content = json.loads(read_private(self._path))
            place, undos = Place(**content["place"]), [Undo(**undo) for undo in content["changes"]]
            is_ours = content["schema"] == _SCHEMA and all(undo.kind in self._performers for undo in undos)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from error
        except (ValueError, TypeError, KeyError):
            is_ours = False
        if not is_ours:
            raise JournalError(
                f"cannot read {self._path}",
                why="it is no record of ours, or of another version",
                fix="take back by hand what an earlier run left, then remove the file",
            )
        if place == self._place:
            return undos
        return [undo for undo in undos if not undo.in_namespace and place.boot_id == self._place.boot_id]

    def _write(self) -> None:
        try:
            if not self._changes:
                self._path.unlink(missing_ok=True)
                return
            content = {"schema": _SCHEMA, "place": asdict(self._place), "changes": [asdict(u) for u in self.changes]}
            write_private(self._path, json.dumps(content).encode())
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> JournalError:
        return JournalError(
            f"cannot use the runtime directory {self._path.parent}",
            why=error.strerror or str(error),
            fix='make it writable for this user, or set "runtime_directory" to a directory that is',
        )


def read_private(path: Path) -> bytes:
    """Read a file that `write_private` wrote; one that somebody else could have written is not believed.

    Raises:
        OSError: It is missing, a symbolic link, another user's, or writable for others.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, f"{path.name} is another user's, or writable for others")
        return file.read()


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically by one of mode 0600.

    Raises:
        OSError: The directory is missing or not writable.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)  # what stands there, a link or a file with another mode, is not written to
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
