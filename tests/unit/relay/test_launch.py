"""The supervisor with an enclave of its own: launched, lost, launched again, refused, adopted, terminated."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.service_pair import ServicePair
from wgvsock.addresses import Cid
from wgvsock.errors import AttestationError
from wgvsock.relay.launcher import Launcher, LaunchSettings
from wgvsock.system.nitro_cli import EnclaveInfo, NitroCli, NitroCliError, RunRequest
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

    def launcher(self, settings: LaunchSettings = SETTINGS) -> Launcher:
        return Launcher(settings, None, self)

    async def run_enclave(self, request: RunRequest) -> EnclaveInfo:
        if self.failures:
            raise self.failures.pop()
        self.launches += 1
        self.boot = self.pair.start_enclave()
        enclave_id = self.identity or self.pair.lab_enclave.module_id
        enclave = EnclaveInfo(request.name or "", enclave_id, 1, Cid(15 + self.launches), "RUNNING", False, 2, 512)
        self.enclaves.append(enclave)
        return enclave

    async def describe_enclaves(self) -> list[EnclaveInfo]:
        return list(self.enclaves)

    async def terminate_enclave(self, enclave_id: str) -> None:
        if self.stays:
            raise NitroCliError("cannot terminate")
        self.enclaves = [one for one in self.enclaves if one.enclave_id != enclave_id]
        await self.die()

    async def die(self) -> None:
        """The enclave's end, whoever caused it."""
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
    launched = pair.relay.status()["launched"]
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
    assert pair.relay.status()["launched"]["cid"] == 17
    await pair.down()


@without_waiting
async def test_a_launch_that_fails_is_tried_again_and_reported(pair: ServicePair, parent: Parent) -> None:
    parent.failures = [NitroCliError("cannot launch", codes=["E27"], why="not enough free huge pages")]
    pair.start_relay(parent.launcher())
    await pair.until(lambda: pair.relay._last_error, "the failure")
    assert pair.relay.status()["provisioning"]["error"]["code"] == "WGV-E060"
    await pair.until(pair.is_ready, "readiness")
    await pair.down()


@without_waiting
async def test_another_enclave_than_the_launched_is_refused_terminated_and_ends_the_relay(
    pair: ServicePair, parent: Parent
) -> None:
    parent.identity = "i-0123456789abcdef0-enc1"
    relay = pair.start_relay(parent.launcher())
    with pytest.raises(AttestationError) as caught:
        await relay
    assert caught.value.exit_code == 5
    assert not pair.filter.is_open
    assert parent.enclaves == []


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
    await pair.until(lambda: pair.relay._last_error, "the refusal")
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
