"""A crash-safe record of our changes to this machine, so that all of them can be undone.

Every change is recorded before it is made. If the process is killed in between, undoing the change does nothing. The
next start under the same name inherits the record. It makes its own changes, for which the original values are kept,
and then undoes the inherited ones that it no longer needs. Nothing flickers between two runs.

A service may serve several enclaves, each with its own `Scope`. Its changes can be undone while the others continue. If
several of them made the same change, such as a switch of the whole machine, the last one undoes it.

The record is one JSON file, mode 0600, replaced atomically. It survives the process but not a boot, and neither do the
changes that it describes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from wgvsock.errors import WgvsockError
from wgvsock.runtime import private
from wgvsock.runtime.errors import AlreadyRunningError, JournalError

_SCHEMA: Final = "wgvsock/journal/2"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NETWORK_NAMESPACE: Final = Path("/proc/self/ns/net")


@dataclass(frozen=True, slots=True)
class Undo:
    """How to undo one change.

    Attributes:
        kind: Names the function that undoes it.
        target: What was changed: an interface, a file, a table.
        value: The former value, as a JSON value.
        in_namespace: Whether the change belongs to the network namespace and goes with it.
    """

    kind: str
    target: str
    value: Any = None
    in_namespace: bool = True


Record = Callable[[Undo], Undo]
"""Records an undo right before its change is made. Returns the undo that is now on record for that target: an earlier
one if the target was changed before."""

Performer = Callable[[str, Any], Awaitable[None]]
"""Undoes a change, given its target and value. It must succeed if there is nothing (left) to undo."""


@dataclass(frozen=True, slots=True)
class Place:
    """The boot and network namespace of a record. Entries from another one describe nothing that still exists."""

    boot_id: str
    network_namespace: str

    @classmethod
    def current(cls) -> Place:
        """The running kernel and this process's network namespace."""
        return cls(_BOOT_ID.read_text(encoding="ascii").strip(), str(_NETWORK_NAMESPACE.readlink()))


class _Key(NamedTuple):
    scope: str
    kind: str
    target: str


class Journal:
    """The changes of one service on this machine.

    Call ``open``, then ``record`` for each change, ``undo_inherited``, ``undo_all`` and ``close``.

    Args:
        directory: Runtime directory, ours alone. Created with mode 0700 if it is missing.
        name: Name of the service. Only one process at a time holds it.
        performers: The functions that undo changes, by `Undo.kind`.
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
        self._changes: dict[_Key, Undo] = {}
        self._inherited: set[_Key] = set()
        self._lock: int | None = None

    @property
    def changes(self) -> tuple[Undo, ...]:
        """Changes that have not been undone, oldest first."""
        return tuple(self._changes.values())

    def open(self) -> int:
        """Take the name's lock, and inherit the record of an earlier process.

        Returns:
            The number of inherited changes.

        Raises:
            AlreadyRunningError: Another process holds the lock.
            JournalError: The directory cannot be used, or the record is not valid.
        """
        try:
            private.make_directory(self._path.parent)
            self._lock = private.open_lock(self._lock_path)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise AlreadyRunningError(
                f'cannot start "{self._name}"',
                why=f"another process with that name is running and holds {self._lock_path}",
                fix='stop it first, or give this one another "name" or "runtime_directory"',
            ) from None
        self._changes = self._read()
        self._inherited = set(self._changes)
        return len(self._inherited)

    def scope(self, name: str) -> Scope:
        """The changes for one part of the service."""
        return Scope(self, name)

    def record(self, undo: Undo, scope: str = "") -> Undo:
        """Record an undo before its change is made. See `Record`.

        Raises:
            JournalError: The file cannot be written. The change must then not be made.
        """
        key = _Key(scope, undo.kind, undo.target)
        self._inherited.discard(key)
        if key not in self._changes:
            self._changes[key] = next((known for _, known in self._holders(key)), undo)
            self._write()
        return self._changes[key]

    async def undo_inherited(self) -> list[WgvsockError]:
        """Undo what an earlier process changed and this one did not. Returns as `undo_all`."""
        inherited, self._inherited = self._inherited, set()
        return await self._undo(key for key in self._changes if key in inherited)

    async def undo(self, kind: str) -> list[WgvsockError]:
        """Undo all changes of one kind. Returns as `undo_all`."""
        return await self._undo(key for key in self._changes if key.kind == kind)

    async def undo_scope(self, scope: str) -> list[WgvsockError]:
        """Undo what was changed only for one part. Returns as `undo_all`."""
        return await self._undo(key for key in self._changes if key.scope == scope)

    async def undo_all(self) -> list[WgvsockError]:
        """Undo everything, newest first.

        Returns:
            The errors. A change that cannot be undone stays on record and does not stop the rest.
        """
        return await self._undo(self._changes)

    def forget(self, kind: str, target: str, scope: str = "") -> None:
        """Drop a change from the record without undoing it, because another owner needs it and will undo it."""
        if self._changes.pop(_Key(scope, kind, target), None) is not None:
            self._write()

    def targets(self, kind: str, scope: str = "") -> tuple[str, ...]:
        """The targets of recorded changes of one kind, for one part, oldest first."""
        return tuple(key.target for key in self._changes if key.kind == kind and key.scope == scope)

    def close(self) -> None:
        """Release the name. Idempotent."""
        if self._lock is not None:
            # The lock file stays: removing it would let two processes lock two files of the same name.
            os.close(self._lock)
            self._lock = None

    def _holders(self, key: _Key) -> Iterator[tuple[_Key, Undo]]:
        """Other parts that made the same change."""
        return ((other, undo) for other, undo in self._changes.items() if other[1:] == key[1:] and other != key)

    async def _undo(self, keys: Iterable[_Key]) -> list[WgvsockError]:
        failed: list[WgvsockError] = []
        for key in reversed(list(keys)):
            undo = self._changes[key]
            try:
                if not any(self._holders(key)):
                    await self._performers[undo.kind](undo.target, undo.value)
            except WgvsockError as error:
                failed.append(error)  # it stays on record for the next start to retry
            else:
                del self._changes[key]
        self._write()
        return failed

    def _read(self) -> dict[_Key, Undo]:
        try:
            content = json.loads(private.read(self._path))
            place = Place(**content["place"])
            undos = {
                _Key(entry.pop("scope"), entry["kind"], entry["target"]): Undo(**entry) for entry in content["changes"]
            }
            is_ours = content["schema"] == _SCHEMA and all(self._can_perform(key, undo) for key, undo in undos.items())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unusable(error) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_ours = False
        if not is_ours:
            raise JournalError(
                f"cannot read {self._path}",
                why="it is not one of our records, or it is from another version",
                fix="undo by hand what an earlier run left, then remove the file",
            )
        if place == self._place:
            return undos
        same_boot = place.boot_id == self._place.boot_id
        return {key: undo for key, undo in undos.items() if not undo.in_namespace and same_boot}

    def _can_perform(self, key: _Key, undo: Undo) -> bool:
        named = all(isinstance(part, str) for part in key)
        return named and isinstance(undo.in_namespace, bool) and undo.kind in self._performers

    def _write(self) -> None:
        try:
            if not self._changes:
                self._path.unlink(missing_ok=True)
                return
            changes = [{"scope": key.scope, **asdict(undo)} for key, undo in self._changes.items()]
            content = {"schema": _SCHEMA, "place": asdict(self._place), "changes": changes}
            private.write(self._path, json.dumps(content).encode())
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> JournalError:
        return JournalError(
            f"cannot use the runtime directory {self._path.parent}",
            why=private.why(error),
            fix=private.fix(error, 'make it writable for this user, or set "runtime_directory" to a directory that is'),
        )


@dataclass(frozen=True, slots=True)
class Scope:
    """The changes in a journal for one part of a service.

    Attributes:
        journal: The journal.
        name: The part's name, which must be the same after a restart.
    """

    journal: Journal
    name: str

    def record(self, undo: Undo) -> Undo:
        """See `Journal.record`."""
        return self.journal.record(undo, self.name)

    def forget(self, kind: str, target: str) -> None:
        """See `Journal.forget`."""
        self.journal.forget(kind, target, self.name)

    def targets(self, kind: str) -> tuple[str, ...]:
        """The targets of recorded changes of one kind, including an earlier process's, oldest first."""
        return self.journal.targets(kind, self.name)

    async def undo_all(self) -> list[WgvsockError]:
        """See `Journal.undo_scope`."""
        return await self.journal.undo_scope(self.name)
