"""Replaces an enclave with one from another image, without refusing a connection.

::

    launch, attest the new one   with a separate interface, link and names; no port is forwarded to it yet
      beside the old one
    shift                        published ports are forwarded to the new one, and no longer to the old one
    drain                        flows of the old one continue until they end, or until a deadline
    terminate                    the old one

If the new enclave is refused, or its ports do not answer, the old one continues to serve. If the machine cannot run
both (because of memory, CPUs, or a fixed CID), the old one is terminated first. It is started again if the new one
fails. Where another change of the relay may free capacity, such as another replacement, its end is awaited before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from wgvsock.errors import WgvsockError
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.errors import ReplacementError
from wgvsock.relay.sections import LaunchSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.runtime.tasks import uninterrupted
from wgvsock.system.nitro_cli import NitroCliError

LOOK: Final = 0.1
"""Seconds between two checks whether the new enclave is ready."""

DRAIN_LOOK: Final = 1.0
"""Seconds between two checks of the old enclave's flows. Each check lists the kernel's whole table."""

FREED_WITHIN: Final = 10.0
"""Seconds in which the capacity of a terminated enclave is free again."""

_NO_ROOM: Final = frozenset({"E22", "E27", "E31", "E32", "E35"})
"""Error codes of nitro-cli for too few CPUs or huge pages. E35 also means that an image cannot be loaded. In that case,
the old enclave is started again."""

_log = logging.getLogger(__name__)

MakeAttendant = Callable[[EnclaveSpec], Attendant]


async def serve_and_close(attendant: Attendant) -> None:
    """Serve, and close at the end. A cancellation ends the serving, but does not interrupt the closing."""
    try:
        await attendant.serve()
    finally:
        await uninterrupted(attendant.close())


@dataclass(eq=False)
class Member:
    """One enclave of the fleet.

    Attributes:
        attendant: The attendant that serves it.
        task: The task that serves and then closes; None before that.
        replacement: The replacement in progress, or None.
    """

    attendant: Attendant
    task: asyncio.Task[None] | None = None
    replacement: Replacement | None = None

    async def open(self) -> None:
        """Set up the enclave's room. On an error or a cancellation, nothing of it is left.

        Raises:
            WgvsockError: It cannot be set up.
        """
        try:
            await self.attendant.open()
        except (WgvsockError, asyncio.CancelledError):
            await uninterrupted(self.attendant.close())
            raise

    @property
    def serves(self) -> bool:
        """Whether the enclave is served, or its room is being closed."""
        return self.task is not None and not self.task.done()

    @property
    def has_ended(self) -> bool:
        """Whether the enclave was served, and its room is closed."""
        return self.task is not None and self.task.done()

    def begin(self) -> None:
        """Start the task that serves the enclave."""
        self.task = asyncio.ensure_future(serve_and_close(self.attendant))

    async def end(self) -> None:
        """Stop, and wait for the end, even if this is cancelled. Errors are ignored: the end was requested."""
        self.attendant.stop()
        if self.task is None:
            return
        await uninterrupted(asyncio.wait({self.task}))
        error = None if self.task.cancelled() else self.task.exception()
        if error is not None and not isinstance(error, WgvsockError):
            raise error


class Replacement:
    """Replaces a member's enclave once. If it is cancelled, it ends the enclave that does not serve.

    Args:
        member: The member, which gets another attendant.
        spec: The member's specification with another image.
        place: A free place for the new enclave.
        make: Creates an attendant, which is not open yet.
        capacity: Waits until another change has ended, which may have freed capacity. Returns False at once if there
            is none.
    """

    def __init__(
        self,
        member: Member,
        spec: EnclaveSpec,
        place: int,
        make: MakeAttendant,
        capacity: Callable[[], Awaitable[bool]],
    ) -> None:
        self.place = place
        self.other: Member | None = None
        """The enclave that does not serve: the new one at first, then the old one."""
        self._member = member
        self._wanted = spec
        self._make = make
        self._capacity = capacity
        self._launch = spec.launch or LaunchSettings("")

    async def run(self) -> None:
        """Replace the enclave.

        Raises:
            ReplacementError: The new enclave was refused or not ready. The old one serves.
        """
        try:
            if not await self._beside():
                await self._in_place()
        finally:
            if self.other is not None:
                await self.other.end()

    def meanwhile(self, spec: EnclaveSpec, attendant: Attendant) -> EnclaveSpec:
        """What one of both enclaves gets of a configuration before the replacement has ended.

        It is what differs from the configuration that the replacement began with, except for the image and the ports.
        The old enclave keeps what distinguishes it from the new one, such as its measurements.
        """
        return attendant.latest.following(self._wanted, spec)

    def follow(self, spec: EnclaveSpec) -> None:
        """Adopt a configuration in both enclaves, as far as `meanwhile` says."""
        for member in (self._member, self.other):
            if member is None or not member.serves:
                continue
            attendant = member.attendant
            wanted = self.meanwhile(spec, attendant)
            try:
                attendant.adopt(wanted, attendant.room.settings_for(wanted))
            except WgvsockError as error:
                attendant.room.complain("the enclave keeps its settings", error)
        self._wanted = self._wanted.following(self._wanted, spec)

    async def _beside(self) -> bool:
        """Replace the enclave while both run. Returns False if this machine cannot run both."""
        wanted = self._wanted
        if wanted.cid is not None:
            _log.info("the replacement interrupts the service: the CID is fixed", extra=self._fields())
            return False
        while True:
            _log.info("launching the new enclave beside the old one", extra=self._fields())
            try:
                new = await self._bring_up(without_ports(self._wanted.successor(self.place)), free_within=0.0)
                break
            except ReplacementError as error:
                if not _lacks_capacity(error.__cause__):
                    raise
            if not await self._capacity():
                _log.info("the replacement interrupts the service: no capacity for both", extra=self._fields())
                return False
        member, old = self._member, Member(self._member.attendant, self._member.task)
        _inherit(new.attendant, old.attendant)
        # The new enclave's rules are added first, so that a new connection always has a destination.
        await new.attendant.publish(wanted.nat.publish)
        member.attendant, member.task, self.other = new.attendant, new.task, old
        await old.attendant.publish((), draining=True)
        _log.info("new connections go to the new enclave", extra=self._fields())
        await self._drain(old.attendant)
        return True

    async def _in_place(self) -> None:
        """Terminate the old enclave, then launch the new one."""
        member, old = self._member, self._member.attendant
        await member.end()
        try:
            new = await self._bring_up(self._wanted, free_within=FREED_WITHIN)
        except ReplacementError:
            _log.warning("starting the old enclave again", extra=self._fields())
            member.attendant = self._make(old.spec)
            await member.open()
            member.begin()
            raise
        _inherit(new.attendant, old)
        member.attendant, member.task, self.other = new.attendant, new.task, None

    async def _bring_up(self, spec: EnclaveSpec, *, free_within: float) -> Member:
        """Start an enclave that is ready and whose ports answer. On failure, nothing of it is left.

        Args:
            spec: The enclave.
            free_within: Seconds after which a lack of capacity is a failure.

        Raises:
            ReplacementError: It was not ready in time. The cause of the error says why.
        """
        new = Member(self._make(spec))
        try:
            await new.open()
        except WgvsockError as failure:
            raise self._failed("it cannot be set up", failure) from failure
        self.other = new
        new.begin()
        assert new.task is not None  # noqa: S101 - just begun
        why = await self._wait_ready(new.attendant, new.task, free_within)
        if not why:
            return new
        end = new.task.exception() if new.task.done() else None
        error = end if isinstance(end, WgvsockError) else new.attendant.last_error
        await new.end()
        self.other = None
        raise self._failed(why, error) from error

    async def _wait_ready(self, new: Attendant, task: asyncio.Task[None], free_within: float) -> str:
        """Wait until an enclave is ready and its ports answer. Returns why it will not be, or an empty string."""
        now = asyncio.get_running_loop().time
        had_capacity = now()
        try:
            async with asyncio.timeout(self._launch.ready_timeout):
                while not (new.readiness().ready and await self._answers(new)):
                    await asyncio.wait({task}, timeout=LOOK)
                    if task.done():
                        return "it was refused"
                    if not _lacks_capacity(new.last_error):
                        had_capacity = now()
                    elif now() - had_capacity >= free_within:
                        return "it was not launched"
        except TimeoutError:
            return "its ports do not answer" if new.readiness().ready else "it was not ready in time"
        return ""

    async def _answers(self, attendant: Attendant) -> bool:
        """Whether every TCP port to be published accepts connections."""
        address = attendant.spec.enclave.addresses[0].ip
        ports = [entry.enclave_port or entry.port for entry in self._wanted.nat.publish if entry.protocol == "tcp"]
        return all([await attendant.room.reach.accepts(address, port) for port in ports])

    async def _drain(self, old: Attendant) -> None:
        """Return when the old enclave has no TCP connection left, or after the deadline."""
        networks = tuple(address.network for address in old.spec.enclave.addresses)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._launch.drain_timeout):
                while left := await old.room.reach.connections(networks):
                    _log.debug("the old enclave has %d connections left", left)
                    await asyncio.sleep(DRAIN_LOOK)

    def _failed(self, why: str, error: WgvsockError | None) -> ReplacementError:
        return ReplacementError(
            f'the enclave "{self._member.attendant.spec.name}" was not replaced',
            why=why if error is None else f"{why}: {error.what}" + (f" ({error.why})" if error.why else ""),
            fix="correct the image or the policy, and try again (the old enclave still serves)",
        )

    def _fields(self) -> dict[str, dict[str, object]]:
        return self._member.attendant.room.fields(image=self._launch.image)


def _lacks_capacity(error: BaseException | None) -> bool:
    """Whether an enclave was not launched because another one has the memory or the CPUs."""
    return isinstance(error, NitroCliError) and not _NO_ROOM.isdisjoint(error.codes)


def _inherit(new: Attendant, old: Attendant) -> None:
    """Pass on the pinned addresses, which stay allowed if the new policy still has their names."""
    new.room.uplink.egress.inherit(old.room.uplink.egress.live())


def without_ports(spec: EnclaveSpec) -> EnclaveSpec:
    """A copy without published ports."""
    return replace(spec, nat=replace(spec.nat, publish=()))
