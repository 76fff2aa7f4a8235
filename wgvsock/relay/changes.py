"""The changes that a relay makes to its enclaves: at most one at a time for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from wgvsock.errors import WgvsockError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.telemetry.logs import fields

_log = logging.getLogger(__name__)


class Kind(Enum):
    """What a change does to its enclave."""

    START = "started"
    STOP = "stopped"
    REPLACE = "replaced"


@dataclass(slots=True)
class Change:
    """A change in progress.

    Attributes:
        kind: What it does.
        task: Does it. Its result is an error that was logged, or None.
        spec: The enclave that it starts, otherwise None.
        places: Places that it reserves.
        seen: Number of changes that had ended when it last began to need the machine's capacity.
        lacks_capacity: Whether it waits for the machine to have capacity for one more enclave.
    """

    kind: Kind
    task: asyncio.Task[WgvsockError | None]
    spec: EnclaveSpec | None
    places: frozenset[int]
    seen: int
    lacks_capacity: bool = False


class Changes:
    """The changes in progress, by the enclave's name.

    Args:
        on_end: Called with an enclave's name when its change has ended.
    """

    def __init__(self, on_end: Callable[[str], None]) -> None:
        self._on_end = on_end
        self._present: dict[str, Change] = {}
        self._tasks: set[asyncio.Task[WgvsockError | None]] = set()
        self._ended = 0

    @property
    def tasks(self) -> set[asyncio.Task[WgvsockError | None]]:
        """The tasks in progress, also of changes that others have taken the place of."""
        return set(self._tasks)

    @property
    def places(self) -> set[int]:
        """The places that are reserved."""
        return set().union(*(change.places for change in self._present.values()))

    @property
    def starting(self) -> dict[str, EnclaveSpec]:
        """The enclaves that are started, by name."""
        return {name: change.spec for name, change in self._present.items() if change.spec is not None}

    def of(self, name: str) -> Change | None:
        """The present change of an enclave."""
        return self._present.get(name)

    def begin(
        self,
        name: str,
        kind: Kind,
        work: Coroutine[Any, Any, WgvsockError | None],
        *,
        spec: EnclaveSpec | None = None,
        places: Iterable[int] = (),
    ) -> Change:
        """Begin a change. It takes the place of the enclave's present one, which it has to end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        change = self._present[name] = Change(kind, task, spec, frozenset(places), self._ended)
        task.add_done_callback(partial(self._end, name))
        return change

    def cancel(self) -> None:
        """Cancel all of them."""
        for task in self._tasks:
            task.cancel()

    async def wait_for_capacity(self, name: str) -> bool:
        """Wait until another change has ended, which may have left capacity for one more enclave.

        Args:
            name: The enclave whose change has found none.

        Returns:
            Whether one has ended since the last attempt. Of changes that all lack capacity, the last one does not wait.
        """
        own = self._present[name]
        others = [one.task for one in self._present.values() if one is not own and not one.lacks_capacity]
        if others and own.seen == self._ended:
            _log.info("there is no capacity for the new enclave until another change ends", extra=fields(enclave=name))
            own.lacks_capacity = True
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            own.lacks_capacity = False
        before, own.seen = own.seen, self._ended
        return before < own.seen

    def _end(self, name: str, task: asyncio.Task[WgvsockError | None]) -> None:
        self._tasks.discard(task)
        self._ended += 1
        if self._present[name].task is task:
            del self._present[name]
            self._on_end(name)
