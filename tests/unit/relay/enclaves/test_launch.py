"""The supervisor with its own enclave: launched, lost, relaunched, refused, adopted, terminated."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.service_pair import ServicePair
from wgvsock.addresses import Cid
from wgvsock.errors import AttestationError
from wgvsock.relay.enclaves.launcher import Launcher
from wgvsock.relay.enclaves.provisioner import Provisioner
from wgvsock.relay.links import link
from wgvsock.relay.sections import LaunchSettings
from wgvsock.relay.service import MakeLauncher
from wgvsock.runtime.journal import Journal, Undo
from wgvsock.system.nitro_cli import EnclaveInfo, Listing, NitroCli, NitroCliError, RunRequest
from wgvsock.system.routing_rule import ROUTING_RULE
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.testing import without_waiting

SETTINGS = LaunchSettings("/images/app.eif")


class Parent(NitroCli):
    """Launching an enclave boots the pair's."""

    def __init__(self, pair: ServicePair) -> None:
        super().__init__("/nonexistent")
        self.pair = pair
        self.enclaves: list[EnclaveInfo] = []
        self.launches = 0
        self.failures: list[NitroCliError] = []
        self.boot: asyncio.Task[int] | None = None
        self.stays = False
        self.identity = ""

    def launcher(self, settings: LaunchSettings = SETTINGS) -> MakeLauncher:
        return lambda spec: Launcher(replace(spec, launch=settings), self)

    async def run_enclave(self, request: RunRequest) -> EnclaveInfo:
        if self.failures:
            raise self.failures.pop()
        self.launches += 1
        self.boot = self.pair.start_enclave()
        enclave_id = self.identity or self.pair.lab_enclave.module_id
        enclave = EnclaveInfo(request.name or "", enclave_id, 1, Cid(15 + self.launches), "RUNNING", False, 2, 512)
        self.enclaves.append(enclave)
        return enclave

    async def describe_enclaves(self, name: str | None = None) -> Listing:
        return Listing(tuple(one for one in self.enclaves if name in {None, one.name}))

    async def terminate_enclave(self, enclave_id: str) -> None:
        if self.stays:
            raise NitroCliError("cannot terminate")
        self.enclaves = [one for one in self.enclaves if one.enclave_id != enclave_id]
        await self.die()

    async def die(self) -> None:
        """The enclave ends, by whatever cause."""
        self.enclaves.clear()
        if self.boot is not None:
            self.boot.cancel()
            await asyncio.gather(self.boot, return_exceptions=True)


@pytest.fixture
def parent(pair: ServicePair) -> Parent:
    return Parent(pair)


@without_waiting
async def test_the_enclave_is_launched_attested_as_launched_and_terminated(pair: ServicePair, parent: Parent) -> None:
    relay = pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    launched = pair.status()["launched"]
    assert launched == {"name": "wgvsock", "enclave_id": pair.lab_enclave.module_id, "cid": 16, "debug": False}
    pair.relay.stop()
    await relay
    assert parent.launches == 1
    assert parent.enclaves == []


@without_waiting
async def test_an_enclave_that_dies_is_launched_again(pair: ServicePair, parent: Parent) -> None:
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    await parent.die()
    await pair.until(lambda: not pair.is_ready(), "the loss")
    await pair.until(pair.is_ready, "readiness again")
    assert parent.launches == 2
    assert pair.status()["launched"]["cid"] == 17
    await pair.down()


@without_waiting
async def test_a_launch_that_fails_is_tried_again_and_reported(pair: ServicePair, parent: Parent) -> None:
    parent.failures = [NitroCliError("cannot launch", codes=["E27"], why="not enough free huge pages")]
    pair.start_relay(parent.launcher())
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the failure")
    assert pair.status()["provisioning"]["error"]["code"] == "WGV-E060"
    await pair.until(pair.is_ready, "readiness")
    await pair.down()


ANOTHER = "i-0123456789abcdef0-enc0000000000000001"
OTHER_PCRS = {0: b"\x66" * 48}


def rejections(pair: ServicePair) -> int:
    if not pair.is_set_up:
        return 0
    attempts: dict[str, int] = pair.status()["provisioning"]["attempts"]
    return attempts["rejected"]


@without_waiting
async def test_another_enclave_than_the_launched_is_no_peer_and_ends_nothing(pair: ServicePair, parent: Parent) -> None:
    parent.identity = ANOTHER
    relay = pair.start_relay(parent.launcher())
    await pair.until(lambda: rejections(pair) > 1, "the refusals")
    assert pair.status()["wireguard"]["peers"] == []
    assert not pair.filter.is_open
    assert not relay.done()
    assert parent.launches == len(parent.enclaves) == 1
    await pair.down()


@without_waiting
async def test_a_document_of_the_attacker_s_enclave_ends_nothing_at_the_start(
    pair: ServicePair, parent: Parent
) -> None:
    """The RESPONSE is replaced by a genuine document of another enclave, with other code, for the very nonce."""
    pair.set_faults(module_id=ANOTHER, pcrs=OTHER_PCRS)
    relay = pair.start_relay(parent.launcher())
    await pair.until(lambda: rejections(pair), "the refusal")
    assert "module_id.launched" in pair.status()["provisioning"]["error"]["what"]
    await asyncio.sleep(30)
    assert not relay.done()
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    assert parent.launches == 1
    await pair.down()


@without_waiting
async def test_a_document_of_the_attacker_s_enclave_ends_nothing_that_works(pair: ServicePair, parent: Parent) -> None:
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    peer = pair.attendant.room.session.peer
    pair.set_faults(module_id=ANOTHER, pcrs=OTHER_PCRS)
    pair.relay.reattest()
    await pair.until(lambda: rejections(pair), "the refusal")
    assert pair.is_ready()
    pair.set_faults()
    await pair.until(lambda: pair.status()["provisioning"]["attempts"]["ok"] == 2, "the next attestation")
    assert pair.attendant.room.session.peer is peer
    assert pair.is_ready()
    assert parent.launches == 1
    await pair.down()


@without_waiting
async def test_the_launched_enclave_itself_with_other_code_is_ended_at_once(pair: ServicePair, parent: Parent) -> None:
    relay = pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    pair.set_faults(pcrs=OTHER_PCRS)
    pair.relay.reattest()
    with pytest.raises(AttestationError) as caught:
        await relay
    assert (caught.value.check, caught.value.exit_code) == ("pcr.set", 5)
    assert not pair.filter.is_open
    assert parent.enclaves == []


@without_waiting
async def test_the_connection_has_to_lead_to_the_launched_enclave(
    pair: ServicePair, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    provision = Provisioner.provision

    async def watched(self: Provisioner, *arguments: Any, **options: Any) -> Any:
        told.append(options["launched_cid"])
        return await provision(self, *arguments, **options)

    monkeypatch.setattr(Provisioner, "provision", watched)
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    assert set(told) == {16}
    await pair.down()


@without_waiting
async def test_a_relay_that_has_stepped_back_neither_launches_nor_ends_an_enclave(
    pair: ServicePair, parent: Parent
) -> None:
    relay = pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    pair.attendant.superseded = True
    await parent.die()
    await pair.until(lambda: not pair.is_ready(), "the loss")
    await asyncio.sleep(300)
    assert parent.launches == 1
    parent.enclaves = [EnclaveInfo("wgvsock", ANOTHER, 1, Cid(99), "RUNNING", False, 2, 512)]  # the younger relay's
    pair.relay.stop()
    await relay
    assert len(parent.enclaves) == 1


@without_waiting
async def test_an_image_that_no_set_allows_is_terminated_and_reported(pair: ServicePair, parent: Parent) -> None:
    pair.lab_enclave.measurements = {**pair.lab_enclave.measurements, 0: bytes([1]) * 48}
    relay = pair.start_relay(parent.launcher())
    with pytest.raises(AttestationError) as caught:
        await relay
    assert caught.value.check == "pcr.set"
    assert parent.launches == 1
    assert parent.enclaves == []


@without_waiting
async def test_a_document_that_is_only_stale_ends_no_enclave(pair: ServicePair, parent: Parent) -> None:
    pair.set_faults(clock_offset=-600)
    relay = pair.start_relay(parent.launcher())
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the refusal")
    assert not relay.done()
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    assert parent.launches == 1
    await pair.down()


@without_waiting
async def test_a_relay_after_a_crash_adopts_the_enclave(pair: ServicePair, parent: Parent) -> None:
    crashed = pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    pair.relay.stop(keep_flows=True)
    await crashed
    assert len(parent.enclaves) == 1
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness again")
    assert parent.launches == 1
    await pair.down()
    assert parent.enclaves == []


@without_waiting
async def test_an_enclave_that_cannot_be_terminated_does_not_keep_the_relay(
    pair: ServicePair, parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    relay = pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    parent.stays = True
    pair.relay.stop()
    await relay
    assert "the enclave was not terminated" in caplog.text
    await parent.die()


@without_waiting
async def test_a_relay_that_is_stopped_while_it_launches_leaves_no_enclave(pair: ServicePair, parent: Parent) -> None:
    relay = pair.start_relay(parent.launcher())
    await pair.until(lambda: parent.launches, "the launch")
    pair.relay.stop()
    await relay
    assert parent.enclaves == []


def launched(pair: ServicePair, **changes: Any) -> None:
    """The configuration also says so, as in production."""
    pair.config = replace(pair.config, launch=replace(SETTINGS, **changes))


@without_waiting
async def test_a_relay_goes_on_with_the_enclave_that_took_another_one_s_place(
    pair: ServicePair, parent: Parent
) -> None:
    launched(pair)
    boot = await parent.run_enclave(RunRequest("/images/new.eif", 2, 512, None, "wgvsock-2"))
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    assert pair.status()["launched"]["enclave_id"] == boot.enclave_id
    assert pair.attendant.spec.owner == "relay/enclave/2"
    assert parent.launches == 1
    await pair.down()
    assert parent.enclaves == []


@pytest.mark.parametrize(("interface", "found"), [("wg5", "wg5"), ("wg0", "wg0"), ("tunnel", "wg0")])
@without_waiting
async def test_it_stays_where_it_was_so_that_its_connections_go_on(
    pair: ServicePair, parent: Parent, interface: str, found: str
) -> None:
    launched(pair)
    journal = Journal(pair.config.runtime_directory, pair.config.name, pair.machine.performers())
    journal.open()
    journal.record(Undo(ROUTING_RULE, interface, ""), "relay/enclave/2")
    journal.close()
    await parent.run_enclave(RunRequest("/images/new.eif", 2, 512, None, "wgvsock-2"))
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    spec = pair.attendant.spec
    assert (spec.owner, spec.interface.name) == ("relay/enclave/2", found)
    assert (spec.enclave.addresses == link(5).enclave) == (found == "wg5")
    await pair.down()


@pytest.mark.parametrize("leftover", ["adopt", "terminate"])
@without_waiting
async def test_of_two_that_a_crash_left_the_successor_is_ended(
    pair: ServicePair, parent: Parent, leftover: Any
) -> None:
    launched(pair, leftover=leftover)
    await parent.run_enclave(RunRequest("/images/app.eif", 2, 512, None, "wgvsock"))
    parent.enclaves.append(EnclaveInfo("wgvsock-2", ANOTHER, 2, Cid(99), "RUNNING", False, 2, 512))
    ended: list[str] = []
    terminate = parent.terminate_enclave

    async def watched(enclave_id: str) -> None:
        ended.append(enclave_id)
        if enclave_id != ANOTHER:
            await terminate(enclave_id)
        parent.enclaves = [one for one in parent.enclaves if one.enclave_id != enclave_id]

    parent.terminate_enclave = watched  # type: ignore[method-assign]
    pair.start_relay(parent.launcher(replace(SETTINGS, leftover=leftover)))
    await pair.until(pair.is_ready, "readiness")
    assert ended[0] == ANOTHER
    assert len(ended) == (1 if leftover == "adopt" else 2)
    assert pair.attendant.spec.owner == "relay"
    await pair.down()


@without_waiting
async def test_a_tool_that_cannot_say_what_is_left_stops_no_start(
    pair: ServicePair, parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    launched(pair)
    describe, asked = parent.describe_enclaves, 0

    async def fails_once(name: str | None = None) -> Listing:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise NitroCliError("cannot list the enclaves", why="the test says so")
        return await describe(name)

    parent.describe_enclaves = fails_once  # type: ignore[method-assign]
    pair.start_relay(parent.launcher())
    await pair.until(pair.is_ready, "readiness")
    assert "an earlier run left an enclave" in caplog.text
    await pair.down()


@without_waiting
async def test_an_application_that_dies_at_once_is_launched_again_ever_more_slowly(
    pair: ServicePair, parent: Parent
) -> None:
    loop, launched = asyncio.get_running_loop(), []
    pair.start_relay(parent.launcher())
    for _ in range(5):
        await pair.until(pair.is_ready, "readiness")
        await pair.until(lambda: pair.attendant.room.application.connected, "the reports")
        launched.append(loop.time())
        pair.enclave._ring.change("exited", ApplicationState(Phase.ENDED, starts=1, code=1), 0)
        await pair.until(lambda: pair.attendant.room.application.has_ended, "the end")
        await parent.die()
        await pair.until(lambda: not pair.is_ready(), "the loss")
    gaps = [after - before for before, after in itertools.pairwise(launched)]
    assert gaps == sorted(gaps)
    assert gaps[-1] - gaps[0] > 6  # 1, 2, 4, 8 seconds, and what each launch takes besides
    await pair.down()
