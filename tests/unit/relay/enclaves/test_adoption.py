"""Configurations come into force in order, and none undoes another."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from wgvsock.errors import WgvsockError
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.adoption import Adoption
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.sections import PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.testing import without_waiting

HTTPS = (PublishSettings("tcp", 443),)
SOON, LATER = (cast("TunnelConfig", name) for name in ("soon", "later"))


@dataclass
class SlowRoom:
    """A room that takes a second to put a specification in force."""

    spec: EnclaveSpec
    tunnel_config: TunnelConfig = SOON
    refused: list[EnclaveSpec] = field(default_factory=list)
    history: list[EnclaveSpec] = field(default_factory=list)

    async def put_in_force(self, spec: EnclaveSpec, tunnel_config: TunnelConfig) -> None:
        """See `Room.put_in_force`."""
        self.spec, self.tunnel_config = spec, tunnel_config
        await asyncio.sleep(1)
        if spec in self.refused:
            raise UplinkError("no way")
        self.history.append(spec)

    def complain(self, _what: str, _error: WgvsockError) -> None:
        """See `Room.complain`."""


@pytest.fixture
def room(spec: EnclaveSpec) -> SlowRoom:
    return SlowRoom(replace(spec, nat=replace(spec.nat, publish=())))


@pytest.fixture
def subject(room: SlowRoom) -> Adoption:
    return Adoption(cast("Room", room))


def renamed(room: SlowRoom) -> EnclaveSpec:
    """The room's specification with another difference than a published port."""
    return replace(room.spec, dns=replace(room.spec.dns, search=("new.test",)))


@without_waiting
async def test_what_is_asked_for_comes_into_force_when_it_is_applied(subject: Adoption, room: SlowRoom) -> None:
    assert await subject.apply() is None
    before, wanted = room.spec, renamed(room)
    outcome = subject.ask(wanted, LATER)
    assert (subject.is_due, subject.latest, room.spec) == (True, (wanted, LATER), before)
    adopted = await subject.apply()
    assert adopted is not None
    assert (adopted.before, adopted.attests_again, subject.is_due) == (before, True, False)
    assert subject.latest == (room.spec, room.tunnel_config) == (wanted, LATER)
    assert not outcome.done()  # the consequences are still to come
    adopted.asked.settle(None)
    assert await outcome is None


@without_waiting
async def test_what_is_refused_leaves_what_was_in_force(subject: Adoption, room: SlowRoom) -> None:
    before, wanted = room.spec, renamed(room)
    room.refused.append(wanted)
    outcome = subject.ask(wanted, LATER)
    assert await subject.apply() is None
    assert isinstance(await outcome, UplinkError)
    assert (room.spec, room.tunnel_config, subject.is_due) == (before, SOON, False)


@pytest.mark.parametrize("when", ["before", "during", "after"])
@without_waiting
async def test_ports_stay_published_whenever_a_configuration_comes(
    subject: Adoption, room: SlowRoom, when: str
) -> None:
    wanted = renamed(room)
    subject.ask(wanted, LATER)
    if when == "before":
        await subject.publish(HTTPS, draining=True)
        await subject.apply()
    else:
        applying = asyncio.ensure_future(subject.apply())
        await asyncio.sleep(0.5 if when == "during" else 2)
        await subject.publish(HTTPS, draining=True)
        assert applying.done()
    assert (room.spec.dns, room.spec.nat.publish, room.spec.draining) == (wanted.dns, HTTPS, True)
    assert room.history[-1] is room.spec


@without_waiting
async def test_ports_stay_published_when_a_configuration_is_refused_meanwhile(
    subject: Adoption, room: SlowRoom
) -> None:
    wanted = renamed(room)
    room.refused.append(wanted)
    subject.ask(wanted, LATER)
    applying = asyncio.ensure_future(subject.apply())
    await asyncio.sleep(0.5)
    await subject.publish(HTTPS)
    assert await applying is None
    assert (room.spec.dns == wanted.dns, room.spec.nat.publish) == (False, HTTPS)
