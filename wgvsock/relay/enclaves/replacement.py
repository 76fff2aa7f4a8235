"""Replaces an enclave with one from another image, without refusing a connection.

::

    launch, attest the new one   with a separate interface, link and names; no port is forwarded to it yet
      beside the old one
    shift                        published ports are forwarded to the new one, and no longer to the old one
    drain                        flows of the old one continue until they end, or until a deadline
    terminate                    the old one

If the new enclave is refused, or its ports do not answer, the old one continues to serve. If the machine cannot run
both (because of memory, CPUs, or a fixed CID), the old one is terminated first. It is started again if the new one
fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from wgvsock.errors import WgvsockError
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.errors import ReplacementError
from wgvsock.relay.sections import LaunchSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.nitro_cli import NitroCliError

LOOK: Final = 0.1
"""Seconds between two checks whether the new enclave is ready."""

DRAIN_LOOK: Final = 1.0
"""Seconds between two checks of the old enclave's flows. Each check lists the kernel's whole table."""

_NO_ROOM: Final = frozenset({"E22", "E27", "E31", "E32", "E35"})
"""Error codes of nitro-cli for too few CPUs or huge pages. E35 also means that an image cannot be loaded. In that case,
the old enclave is started again."""

_log = logging.getLogger(__name__)

MakeAttendant = Callable[[EnclaveSpec], Attendant]


async def serve_and_close(attendant: Attendant) -> None:
    """Serve, and close at the end."""
    try:
        await attendant.serve()
    finally:
        await attendant.close()


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

    def begin(self) -> None:
        """Start the task that serves the enclave."""
        self.task = asyncio.ensure_future(serve_and_close(self.attendant))

    async def end(self) -> None:
        """Stop, and wait for the end. Errors are ignored, because the end was requested."""
        self.attendant.stop()
        if self.task is not None:
            with contextlib.suppress(WgvsockError):
                await self.task


class Replacement:
    """Replaces a member's enclave once. If it is cancelled, it ends the enclave that does not serve.

    Args:
        member: The member, which gets another attendant.
        spec: The member's specification with another image.
        place: A free place for the new enclave.
        make: Creates an attendant, which is not open yet.
    """

    def __init__(self, member: Member, spec: EnclaveSpec, place: int, make: MakeAttendant) -> None:
        self.other: Member | None = None
        """The enclave that does not serve: the new one at first, then the old one."""
        self._member = member
        self._wanted = spec
        self._place = place
        self._make = make
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

    async def _beside(self) -> bool:
        """Replace the enclave while both run. Returns False if this machine cannot run both."""
        wanted = self._wanted
        if wanted.cid is not None:
            _log.info("the replacement interrupts the service: the CID is fixed", extra=self._fields())
            return False
        _log.info("launching the new enclave beside the old one", extra=self._fields())
        successor = wanted.successor(self._place)
        try:
            new = await self._bring_up(without_ports(successor))
        except ReplacementError as error:
            cause = error.__cause__
            if isinstance(cause, NitroCliError) and _NO_ROOM & set(cause.codes):
                _log.info("the replacement interrupts the service: no capacity for both", extra=self._fields())
                return False
            raise
        member, old = self._member, Member(self._member.attendant, self._member.task)
        _inherit(new.attendant, old.attendant)
        # The new enclave's rules are added first, so that a new connection always has a destination.
        await new.attendant.publish(successor.nat.publish)
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
            new = await self._bring_up(self._wanted)
        except ReplacementError:
            _log.warning("starting the old enclave again", extra=self._fields())
            member.attendant = self._make(old.spec)
            await member.attendant.open()
            member.begin()
            raise
        _inherit(new.attendant, old)
        member.attendant, member.task, self.other = new.attendant, new.task, None

    async def _bring_up(self, spec: EnclaveSpec) -> Member:
        """Start an enclave that is ready and whose ports answer. On failure, nothing of it is left.

        Raises:
            ReplacementError: It was not ready in time. The cause of the error says why.
        """
        new = Member(self._make(spec))
        self.other = new
        try:
            await new.attendant.open()
        except WgvsockError as failure:
            await new.attendant.close()
            self.other = None
            raise self._failed("it cannot be set up", failure) from failure
        new.begin()
        assert new.task is not None  # noqa: S101 - just begun
        try:
            async with asyncio.timeout(self._launch.ready_timeout):
                while not (new.attendant.readiness().ready and await self._answers(new.attendant)):
                    await asyncio.wait({new.task}, timeout=LOOK)
                    if new.task.done():
                        break
        except TimeoutError:
            error = new.attendant.last_error
            await new.end()
            self.other = None
            why = "its ports do not answer" if new.attendant.readiness().ready else "it was not ready in time"
            raise self._failed(why, error) from error
        if new.task.done():
            self.other = None
            end = new.task.exception()
            error = end if isinstance(end, WgvsockError) else new.attendant.last_error
            raise self._failed("it was refused", error) from error
        return new

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


def _inherit(new: Attendant, old: Attendant) -> None:
    """Pass on the pinned addresses, which stay allowed if the new policy still has their names."""
    new.room.uplink.egress.inherit(old.room.uplink.egress.live())


def without_ports(spec: EnclaveSpec) -> EnclaveSpec:
    """A copy without published ports."""
    return replace(spec, nat=replace(spec.nat, publish=()))
