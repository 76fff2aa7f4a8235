"""Attendants that serve no enclave, for tests of the layers above them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from wgvsock.egress.policy import Site
from wgvsock.errors import WgvsockError
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.orders import Outcome
from wgvsock.relay.sections import PublishSettings
from wgvsock.relay.snapshots import EnclaveSnapshot, Readiness, State
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.egress import Egress
from wgvsock.relay.uplink.reach import KernelReach
from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.testing import ManualClock
from wgvsock.testing.machine import MemoryMachine

RETRY = 3.0
"""Seconds after which a launch that failed is tried again."""

NO_ROOM = NitroCliError("cannot launch", codes=["E39", "E27"], why="not enough free huge pages")


@dataclass
class FakeUplink:
    """An uplink, as far as its callers use it."""

    egress: Egress = field(default_factory=lambda: Egress(ManualClock()))


@dataclass
class FakeRoom:
    """A room, as far as its callers use it."""

    spec: EnclaveSpec
    machine: MemoryMachine
    uplink: FakeUplink = field(default_factory=FakeUplink)

    def __post_init__(self) -> None:
        self.uplink.egress.adopt(self.spec.egress.policy(), Site())
        self.reach = KernelReach(self.machine)

    def settings_for(self, _spec: EnclaveSpec) -> TunnelConfig:
        """See `Room.settings_for`."""
        return cast("TunnelConfig", None)

    def complain(self, what: str, error: WgvsockError) -> None:
        """See `Room.complain`."""
        raise AssertionError(what) from error

    def fields(self, **values: object) -> dict[str, dict[str, object]]:
        """See `Room.fields`."""
        return {"fields": {"enclave": self.spec.name, **values}}


class FakeAttendant:
    """Has the verbs of `Attendant`, and behaves as the house says of its image."""

    def __init__(self, house: House, spec: EnclaveSpec) -> None:
        self.house = house
        self.first = spec
        self.room = FakeRoom(spec, house.machine)
        self.last_error: WgvsockError | None = None
        self.keep_flows = False
        self.serves = False
        self._stop = asyncio.Event()
        self.fails: WgvsockError | None = None
        self.exit_status: int | None = None

    @property
    def spec(self) -> EnclaveSpec:
        """See `Attendant.spec`."""
        return self.room.spec

    @property
    def latest(self) -> EnclaveSpec:
        """See `Attendant.latest`. Nothing is ever due."""
        return self.room.spec

    @property
    def image(self) -> str:
        """What it launches."""
        return "" if self.spec.launch is None else self.spec.launch.image

    async def open(self) -> None:
        """See `Attendant.open`."""
        self.house.note("open", self)
        await asyncio.sleep(self.house.opening)
        if error := self.house.cannot_open.get(self.image):
            raise error

    async def serve(self) -> None:
        """See `Attendant.serve`."""
        self.house.note("serve", self)
        self.serves = True
        if error := self.house.refused.get(self.image) or self.house.refused.get(self.spec.owner):
            raise error
        stopped = asyncio.ensure_future(self._stop.wait())
        while (error := self.house.not_launched(self)) and not stopped.done():
            self.last_error = error
            await asyncio.wait({stopped}, timeout=RETRY)
        self.last_error = None
        await stopped
        if self.fails is not None:
            raise self.fails

    async def close(self) -> None:
        """See `Attendant.close`."""
        self.serves = False
        await asyncio.sleep(self.house.closing)
        self.house.note("close", self)

    def stop(self, *, keep_flows: bool = False) -> None:
        """See `Attendant.stop`."""
        self.keep_flows = keep_flows
        self._stop.set()

    def fail(self, error: WgvsockError) -> None:
        """It cannot continue."""
        self.fails = error
        self._stop.set()

    def adopt(self, spec: EnclaveSpec, _tunnel_config: TunnelConfig) -> Outcome:
        """See `Attendant.adopt`."""
        self.room.spec = spec
        self.house.note("adopt", self)
        return self.outcome()

    def reattest(self) -> Outcome:
        """See `Attendant.reattest`."""
        return self.outcome()

    @staticmethod
    def outcome() -> Outcome:
        """It succeeded at once."""
        done: Outcome = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def publish(self, ports: tuple[PublishSettings, ...], *, draining: bool = False) -> None:
        """See `Attendant.publish`."""
        spec = self.room.spec
        self.room.spec = replace(spec, nat=replace(spec.nat, publish=ports), draining=draining)
        self.house.note(f"publish {len(ports)}", self)

    def readiness(self) -> Readiness:
        """See `Attendant.readiness`."""
        ready = self.serves and self.image not in self.house.never_ready and self.last_error is None
        return Readiness(attested=ready, handshake=True, rules=True)

    def snapshot(self) -> EnclaveSnapshot:
        """See `Attendant.snapshot`."""
        return EnclaveSnapshot(
            name=self.spec.name,
            state=State.READY,
            readiness=self.readiness(),
            address=self.image,
            launched=None,
            attestation=None,
            root_is_aws=True,
            debug_allowed=False,
            attempts={},
            next_attestation=0,
            trusted_for=0,
            error=None,
            wireguard=None,
            counters=None,
            uplink=None,
        )


@dataclass
class House:
    """Makes attendants, and records their events in order.

    Attributes:
        cannot_open: What opening fails with, by image.
        refused: What serving ends with, by image or by owner of the rules.
        never_ready: Images that are never attested.
        cannot_launch: What every launch fails with, by image.
        capacity: Number of enclaves that can run at once. A launch that fails is repeated.
        opening: Seconds that opening takes.
        closing: Seconds that closing takes.
    """

    machine: MemoryMachine = field(default_factory=MemoryMachine)
    cannot_open: dict[str, WgvsockError] = field(default_factory=dict)
    refused: dict[str, WgvsockError] = field(default_factory=dict)
    never_ready: set[str] = field(default_factory=set)
    cannot_launch: dict[str, WgvsockError] = field(default_factory=dict)
    capacity: int = 1000
    opening: float = 0.0
    closing: float = 0.0
    history: list[str] = field(default_factory=list)
    made: list[FakeAttendant] = field(default_factory=list)

    def make(self, spec: EnclaveSpec) -> Attendant:
        """For a fleet."""
        self.made.append(FakeAttendant(self, spec))
        return cast("Attendant", self.made[-1])

    def not_launched(self, attendant: FakeAttendant) -> WgvsockError | None:
        """What the launch of an enclave fails with."""
        running = [one for one in self.made if one.serves and one.last_error is None and one is not attendant]
        return NO_ROOM if len(running) >= self.capacity else self.cannot_launch.get(attendant.image)

    def note(self, what: str, attendant: FakeAttendant) -> None:
        """It happened."""
        self.history.append(f"{what} {attendant.spec.owner} {attendant.image}".strip())


def images(attendants: Iterable[Attendant | FakeAttendant]) -> set[str]:
    """What they launch."""
    return {one.spec.launch.image for one in attendants if one.spec.launch is not None}


def with_image(spec: EnclaveSpec, image: str, **launch: Any) -> EnclaveSpec:
    """The same, launched from another image."""
    assert spec.launch is not None
    return replace(spec, launch=replace(spec.launch, image=image, **launch))
