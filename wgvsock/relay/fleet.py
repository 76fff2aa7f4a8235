"""Starts, keeps, stops and replaces the enclaves of a relay, each independently of the others.

An enclave has at most one change at a time. A configuration that comes meanwhile is applied to it afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from wgvsock.errors import WgvsockError
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.changes import Change, Changes, Kind
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.enclaves.replacement import MakeAttendant, Member, Replacement
from wgvsock.relay.errors import ReloadError, ReplacementError
from wgvsock.relay.links import free_place
from wgvsock.relay.orders import Outcome, Waiters
from wgvsock.relay.snapshots import EnclaveSnapshot
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.telemetry.logs import error_fields, fields

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that apply another configuration.

    Attributes:
        config: The configuration.
        keep: Enclaves that continue, with their new settings.
        stop: Names of enclaves to stop.
        start: New enclaves.
        replace: Enclaves that get another image.
        later: Names of enclaves that another change is being made to, with what they are to become, if known.
    """

    config: RelayConfig
    keep: list[tuple[EnclaveSpec, TunnelConfig]] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    start: list[EnclaveSpec] = field(default_factory=list)
    replace: list[EnclaveSpec] = field(default_factory=list)
    later: dict[str, EnclaveSpec | None] = field(default_factory=dict)


class Fleet:
    """All enclaves of one relay.

    Args:
        make: Creates an attendant, which is not open yet.
    """

    def __init__(self, make: MakeAttendant) -> None:
        self.members: dict[str, Member] = {}
        self._make = make
        self._changes = Changes(self._apply_later)
        self._wanted: RelayConfig | None = None  # the latest configuration
        self._later: dict[str, Waiters] = {}  # for enclaves that get it after their present change, by name
        self._changed = asyncio.Event()
        self._stopping: bool | None = None  # whether to keep flows, or None if not stopping
        self._failed: dict[Member, WgvsockError] = {}  # the errors that ended members, in order

    @property
    def attendants(self) -> list[Attendant]:
        """The attendant of each enclave."""
        return [member.attendant for member in self.members.values()]

    @property
    def exit_status(self) -> int:
        """The exit status of the first application that failed and ended its enclave's service, or 0."""
        return next((status for one in self.attendants if (status := one.exit_status)), 0)

    async def open(self, specs: Iterable[EnclaveSpec]) -> None:
        """Set up every enclave's room. No packets pass yet.

        Raises:
            WgvsockError: A room cannot be set up. `close` reverts what was done.
        """
        for spec in specs:
            member = self.members[spec.name] = Member(self._make(spec))
            await member.attendant.open()

    async def serve(self) -> None:
        """Serve until every enclave is stopped.

        An enclave that can no longer be served does not affect the others.

        Raises:
            WgvsockError: The error that ended the last enclave, unless it was stopped.
        """
        for member in self.members.values():
            member.begin()
        while tasks := self._tasks():
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({*tasks, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            self._report_ends()

    async def close(self) -> None:
        """Revert all changes to the machine, even if `open` failed or `serve` was cancelled."""
        for task in self._tasks():
            task.cancel()
        if tasks := self._tasks():
            await asyncio.wait(tasks)
        for member in self.members.values():
            if member.task is None:
                await member.attendant.close()

    def stop(self, *, keep_flows: bool = False) -> None:
        """End `serve`. See `Attendant.stop`."""
        self._stopping = keep_flows
        self._changes.cancel()
        for attendant in self.attendants:
            attendant.stop(keep_flows=keep_flows)

    def plan(self, config: RelayConfig, only: str | None = None) -> Plan:
        """Compare a configuration with the running enclaves.

        Args:
            config: The configuration.
            only: The name of the enclave to compare, or None for all.

        Raises:
            ReloadError: The configuration changes a setting that a running relay cannot change.
            WgvsockError: An enclave would refuse its new settings.
        """
        plan = Plan(config)
        known = self._changes.starting | {name: member.attendant.spec for name, member in self.members.items()}
        held = {name: (spec.home or spec).place for name, spec in known.items()}
        specs = {spec.name: spec for spec in config.specs(held, self._places())}
        for name in [only] if only is not None else [*(name for name in held if name not in specs), *specs]:
            self._compare(name, specs.get(name), plan)
        return plan

    def _compare(self, name: str, spec: EnclaveSpec | None, plan: Plan) -> None:
        """Add to a plan what one enclave's specification requires, or the lack of one."""
        member, change = self.members.get(name), self._changes.of(name)
        if change is not None and (spec is not None or change.kind is Kind.START):
            plan.later[name] = spec
            if spec is not None and member is not None and member.replacement is not None and member.serves:
                _check(member.attendant, member.replacement.meanwhile(spec, member.attendant))
        elif spec is None and member is not None:
            plan.stop.append(name)  # even in the middle of a replacement
        elif spec is None:
            return
        elif member is None or member.has_ended:
            plan.start.append(spec)
        else:
            wanted = spec.in_place_of(member.attendant.spec)
            if member.attendant.spec.differs_in_image(wanted):
                plan.replace.append(wanted)
            else:
                plan.keep.append((wanted, _check(member.attendant, wanted)))

    def carry_out(self, plan: Plan) -> dict[str, Outcome]:
        """Carry out a plan. A failure is logged and affects only its own enclave.

        Returns:
            The result for each enclave, except for those that get another image, which takes minutes.
        """
        outcomes: dict[str, Outcome] = {}
        self._wanted = plan.config
        for name, wanted in plan.later.items():
            if wanted is not None and (member := self.members.get(name)) and member.replacement is not None:
                member.replacement.follow(wanted)  # a stricter policy does not wait
            outcomes[name] = self._later.setdefault(name, Waiters()).add()
        for spec, tunnel_config in plan.keep:
            outcomes[spec.name] = self.members[spec.name].attendant.adopt(spec, tunnel_config)
        for name in plan.stop:
            change = self._changes.of(name)
            if change is None or change.kind is not Kind.STOP:
                places = () if change is None else change.places  # which a replacement has to clear first
                change = self._changes.begin(name, Kind.STOP, self._end(name, change), places=places)
            outcomes[name] = change.task
        for spec in plan.start:
            change = self._changes.begin(spec.name, Kind.START, self._start(spec), spec=spec, places=spec.places)
            outcomes[spec.name] = change.task
        for spec in plan.replace:
            self.replace(spec)
        self._changed.set()
        return outcomes

    def reattest(self) -> dict[str, Outcome]:
        """Attest every served enclave again now, and return the result for each."""
        served = {name: member for name, member in self.members.items() if not member.has_ended}
        return {name: member.attendant.reattest() for name, member in served.items()}

    def replace(self, spec: EnclaveSpec) -> None:
        """Start to replace an enclave with one from another image; see `wgvsock.relay.enclaves.replacement`.

        Raises:
            ReplacementError: The enclave is already being replaced, started or stopped.
        """
        name, member = spec.name, self.members[spec.name]
        if change := self._changes.of(name):
            raise ReplacementError(
                f'cannot replace the enclave "{name}"',
                why=f"it is already being {change.kind.value}",
                fix="wait until that ends",
            )
        place = free_place(self._places())
        capacity = partial(self._changes.wait_for_capacity, name)
        member.replacement = Replacement(member, spec, place, self._make, capacity)
        self._changes.begin(name, Kind.REPLACE, self._replace(name, member, member.replacement), places={place})
        self._changed.set()

    def snapshots(self) -> tuple[EnclaveSnapshot, ...]:
        """The state of each enclave and of its replacement."""
        return tuple(_snapshot(member) for member in self.members.values())

    # Internals.

    def _tasks(self) -> set[asyncio.Task[Any]]:
        tasks: set[asyncio.Task[Any]] = {one.task for one in self.members.values() if one.task is not None}
        return {task for task in tasks | self._changes.tasks if not task.done()}

    def _places(self) -> set[int]:
        """The places that no other enclave may use."""
        return self._changes.places.union(*(attendant.spec.places for attendant in self.attendants))

    def _apply_later(self, name: str) -> None:
        """Apply the latest configuration to an enclave whose change has ended."""
        waiters = self._later.pop(name, None)
        if waiters is None or self._wanted is None or self._stopping is not None:
            return
        try:
            outcome = self.carry_out(self.plan(self._wanted, only=name)).get(name)
        except WgvsockError as error:
            _complain(name, "the enclave keeps its settings", error)
            waiters.settle(error)
            return
        if outcome is None:
            waiters.settle(None)
        else:
            outcome.add_done_callback(lambda done: waiters.settle(None if done.cancelled() else done.result()))

    def _report_ends(self) -> None:
        new: dict[str, WgvsockError] = {}
        for name, member in self.members.items():
            task = member.task
            if task is None or not task.done() or task.cancelled() or (error := task.exception()) is None:
                continue
            if not isinstance(error, WgvsockError):
                raise error
            if member not in self._failed:
                self._failed[member] = new[name] = error
        is_last = not self._tasks()
        for name, error in list(new.items())[: -1 if is_last else None]:
            _complain(name, "the enclave is no longer served, but the others are", error)
        if is_last and self._failed:
            raise list(self._failed.values())[-1]

    async def _start(self, spec: EnclaveSpec) -> WgvsockError | None:
        member = Member(self._make(spec))
        try:
            await member.open()
        except WgvsockError as error:
            _complain(spec.name, "the enclave is not served", error)
            return error
        self.members[spec.name] = member
        member.begin()
        return None

    async def _end(self, name: str, replacement: Change | None) -> None:
        if replacement is not None:
            replacement.task.cancel()
            await asyncio.wait({replacement.task})
        await self.members[name].end()
        del self.members[name]
        _log.info("the enclave is no longer served", extra=fields(enclave=name))

    async def _replace(self, name: str, member: Member, replacement: Replacement) -> None:
        try:
            await replacement.run()
        except WgvsockError as error:
            _complain(name, "the enclave was not replaced", error)
        else:
            _log.info("the enclave has been replaced", extra=fields(enclave=name))
        finally:
            member.replacement = None
            if self._stopping is not None:  # another attendant may serve now than the one told
                member.attendant.stop(keep_flows=self._stopping)


def _snapshot(member: Member) -> EnclaveSnapshot:
    other = None if member.replacement is None else member.replacement.other
    return replace(member.attendant.snapshot(), replacement=None if other is None else other.attendant.snapshot())


def _check(attendant: Attendant, wanted: EnclaveSpec) -> TunnelConfig:
    """Return the settings that an enclave gets under another specification.

    Raises:
        ReloadError: The specification changes a setting that a running relay cannot change.
        WgvsockError: The enclave would refuse the settings.
    """
    if key := attendant.spec.restart_needed_for(wanted):
        raise ReloadError(key)
    return attendant.room.settings_for(wanted)


def _complain(name: str, what: str, error: WgvsockError) -> None:
    _log.error(what, extra=error_fields(error, enclave=name))
