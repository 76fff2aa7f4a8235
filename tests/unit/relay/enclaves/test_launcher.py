from __future__ import annotations

from dataclasses import replace

import pytest

from wgvsock.addresses import Cid, Port, VsockAddress
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.launcher import FIRST_BACKOFF, LONGEST_BACKOFF, Launcher
from wgvsock.relay.sections import (
    WHEREVER_LAUNCHED,
    AttestationSettings,
    EnclaveSettings,
    LaunchSettings,
    PcrSetSettings,
)
from wgvsock.system.nitro_cli import EnclaveInfo, Listing, NitroCli, NitroCliError, RunRequest

SETTINGS = LaunchSettings("/images/app.eif", cpu_count=2, memory_mib=512)


class Parent(NitroCli):
    """A parent instance: launched enclaves get the next identity."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.enclaves: list[EnclaveInfo] = []
        self.requests: list[RunRequest] = []
        self.sleeps: list[float] = []
        self.failure: NitroCliError | None = None
        self.unseen: NitroCliError | None = None  # why the list may not be complete

    async def run_enclave(self, request: RunRequest) -> EnclaveInfo:
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        number = len(self.requests)
        enclave = EnclaveInfo(
            request.name or "", f"i-1-enc{number}", 1, request.cid or Cid(15 + number), "RUNNING", request.debug, 2, 512
        )
        self.enclaves.append(enclave)
        return enclave

    async def describe_enclaves(self, name: str | None = None) -> Listing:
        return Listing(tuple(one for one in self.enclaves if one.name == name), self.unseen)

    async def terminate_enclave(self, enclave_id: str) -> None:
        self.enclaves = [one for one in self.enclaves if one.enclave_id != enclave_id]

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)


def left_over(**changes: object) -> EnclaveInfo:
    return replace(EnclaveInfo("wgvsock", "i-1-enc99", 1, Cid(99), "RUNNING", False, 2, 512), **changes)  # type: ignore[arg-type]


@pytest.fixture
def parent() -> Parent:
    return Parent()


def launcher(parent: Parent, settings: LaunchSettings = SETTINGS, cid: Cid | None = None) -> Launcher:
    address = WHEREVER_LAUNCHED if cid is None else VsockAddress(cid, Port(51820))
    policy = AttestationSettings((PcrSetSettings(*("01" * 48,) * 3),))
    (spec,) = RelayConfig(policy, EnclaveSettings(address), settings).specs()
    return Launcher(spec, parent, sleep=parent.sleep)


@pytest.mark.asyncio
async def test_start_launches_what_the_settings_say(parent: Parent) -> None:
    ours = launcher(parent)
    enclave = await ours.start()
    assert parent.requests == [RunRequest("/images/app.eif", 2, 512, None, "wgvsock", debug=False)]
    assert ours.enclave == enclave
    assert await ours.is_running()


@pytest.mark.asyncio
async def test_an_enclave_that_our_crash_left_is_adopted(parent: Parent) -> None:
    parent.enclaves = [left_over()]
    assert (await launcher(parent).start()).enclave_id == "i-1-enc99"
    assert parent.requests == []


@pytest.mark.parametrize(
    ("changes", "settings", "cid"),
    [
        ({}, replace(SETTINGS, leftover="terminate"), None),
        ({"state": "TERMINATING"}, SETTINGS, None),
        ({"debug": True}, SETTINGS, None),
        ({"cid": Cid(98)}, SETTINGS, Cid(99)),
    ],
)
@pytest.mark.asyncio
async def test_what_is_not_ours_as_configured_is_terminated_and_launched_anew(
    parent: Parent, changes: dict[str, object], settings: LaunchSettings, cid: Cid | None
) -> None:
    parent.enclaves = [left_over(**changes)]
    enclave = await launcher(parent, settings, cid).start()
    assert parent.enclaves == [enclave]
    assert enclave.enclave_id == "i-1-enc1"


@pytest.mark.asyncio
async def test_another_relays_enclave_is_left_alone(parent: Parent) -> None:
    other = left_over(name="someone-else")
    parent.enclaves = [other]
    ours = launcher(parent)
    await ours.start()
    await ours.stop()
    assert parent.enclaves == [other]


@pytest.mark.asyncio
async def test_an_enclave_that_died_is_not_running(parent: Parent) -> None:
    ours = launcher(parent)
    assert not await ours.is_running()
    await ours.start()
    parent.enclaves.clear()
    assert not await ours.is_running()


@pytest.mark.asyncio
async def test_another_enclave_of_our_name_is_not_ours(parent: Parent) -> None:
    ours = launcher(parent)
    await ours.start()
    parent.enclaves = [left_over()]
    assert not await ours.is_running()


@pytest.mark.asyncio
async def test_restarts_back_off_until_one_has_proved_itself(parent: Parent) -> None:
    ours = launcher(parent)
    await ours.start()
    for _ in range(8):
        await ours.restart()
    assert parent.sleeps == [1, 2, 4, 8, 16, 32, LONGEST_BACKOFF, LONGEST_BACKOFF]
    assert len(parent.enclaves) == 1
    ours.proved()
    await ours.restart()
    assert parent.sleeps[-1] == FIRST_BACKOFF


@pytest.mark.asyncio
async def test_a_restart_does_not_adopt_the_enclave_it_replaces(parent: Parent) -> None:
    ours = launcher(parent)
    first = await ours.start()
    assert (await ours.restart()).enclave_id != first.enclave_id


@pytest.mark.asyncio
async def test_stop_terminates_and_can_be_repeated(parent: Parent) -> None:
    ours = launcher(parent)
    await ours.stop()
    await ours.start()
    await ours.stop()
    await ours.stop()
    assert parent.enclaves == []
    assert ours.enclave is None


@pytest.mark.asyncio
async def test_stop_finds_an_enclave_whose_launch_was_cut_short(parent: Parent) -> None:
    ours = launcher(parent)
    parent.failure = NitroCliError("cancelled half-way")
    with pytest.raises(NitroCliError):
        await ours.start()
    parent.enclaves = [left_over()]
    await ours.stop()
    assert parent.enclaves == []


# The tool names some enclaves and fails: with one of them it could not speak.


@pytest.fixture
def half_blind(parent: Parent) -> Parent:
    """What is listed exists. What is not listed may exist."""
    parent.unseen = NitroCliError("cannot list the enclaves", codes=["E39"])
    return parent


@pytest.mark.asyncio
async def test_what_is_listed_is_believed_whatever_else_failed(half_blind: Parent) -> None:
    half_blind.enclaves = [left_over()]
    ours = launcher(half_blind)
    assert (await ours.start()).enclave_id == "i-1-enc99"
    assert await ours.is_running()
    assert half_blind.requests == []


@pytest.mark.asyncio
async def test_none_is_launched_beside_one_that_may_be_there(half_blind: Parent) -> None:
    with pytest.raises(NitroCliError, match="list"):
        await launcher(half_blind).start()
    assert half_blind.requests == []


@pytest.mark.asyncio
async def test_an_enclave_that_is_not_listed_may_run(parent: Parent) -> None:
    ours = launcher(parent)
    await ours.start()
    parent.enclaves.clear()
    parent.unseen = NitroCliError("cannot list the enclaves", codes=["E39"])
    with pytest.raises(NitroCliError, match="list"):
        await ours.is_running()
    with pytest.raises(NitroCliError, match="list"):
        await ours.stop()
    parent.unseen = None
    await ours.stop()
    assert ours.enclave is None
