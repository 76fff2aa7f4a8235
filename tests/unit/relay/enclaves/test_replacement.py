"""Another image in an enclave's place: the order, and what remains when the image is bad."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.relay.fakes import NO_ROOM, House, with_image
from wgvsock.addresses import Cid, Port, VsockAddress
from wgvsock.attestation.errors import PcrSetError
from wgvsock.egress.settings import EgressSettings, RuleSettings
from wgvsock.relay.enclaves.replacement import FREED_WITHIN, Member, Replacement
from wgvsock.relay.errors import ReplacementError, UplinkError
from wgvsock.relay.sections import LaunchSettings, PublishSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.testing import without_waiting


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def launched(spec: EnclaveSpec) -> EnclaveSpec:
    """An enclave with two published ports."""
    ports = (PublishSettings("tcp", 443, 8443), PublishSettings("udp", 53))
    launch = LaunchSettings("/a.eif", ready_timeout=20, drain_timeout=30)
    return replace(spec, launch=launch, nat=replace(spec.nat, publish=ports))


async def serving(house: House, spec: EnclaveSpec) -> Member:
    member = Member(house.make(spec))
    await member.attendant.open()
    member.begin()
    await asyncio.sleep(0)
    return member


async def no_other() -> bool:
    """No other change frees capacity."""
    return False


async def replaced(house: House, spec: EnclaveSpec, wanted: EnclaveSpec) -> Member:
    member = await serving(house, spec)
    try:
        await Replacement(member, wanted, 3, house.make, no_other).run()
    finally:
        house.history.append("--")
        serves = member.task is not None and not member.task.done()
        await member.end()
        assert serves  # whatever happened, somebody serves
    return member


@without_waiting
async def test_the_new_one_is_ready_before_ports_move_and_the_old_one_goes_last(
    house: House, launched: EnclaveSpec
) -> None:
    house.machine.connections_left = [2, 1, 0]
    member = await replaced(house, launched, with_image(launched, "/b.eif"))
    assert house.history[: house.history.index("--")] == [
        "open relay /a.eif",
        "serve relay /a.eif",
        "open relay/enclave/2 /b.eif",
        "serve relay/enclave/2 /b.eif",
        "publish 2 relay/enclave/2 /b.eif",
        "publish 0 relay /a.eif",
        "close relay /a.eif",
    ]
    assert house.made[1].spec.interface.name == "wg3"
    assert house.machine.connections_left == [0]
    assert member.attendant.spec.owner == "relay/enclave/2"


@without_waiting
async def test_connections_that_do_not_end_are_cut_at_the_deadline(house: House, launched: EnclaveSpec) -> None:
    house.machine.connections_left = [1]
    began = asyncio.get_running_loop().time()
    await replaced(house, launched, with_image(launched, "/b.eif"))
    assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=2)


@pytest.mark.parametrize("case", ["refused", "cannot open", "not attested", "ports"])
@without_waiting
async def test_one_that_is_no_good_leaves_the_old_one_serving(house: House, launched: EnclaveSpec, case: str) -> None:
    why = "it was not ready in time"
    if case == "refused":
        house.refused["/b.eif"] = PcrSetError("the measurements are not an allowed set")
        why = "it was refused: "
    elif case == "cannot open":
        house.cannot_open["/b.eif"] = UplinkError("no way")
        why = "it cannot be set up: no way"
    elif case == "not attested":
        house.never_ready.add("/b.eif")
        why = "it was not ready in time"
    else:
        house.machine.listening = False
        why = "its ports do not answer"
    with pytest.raises(ReplacementError) as caught:
        await replaced(house, launched, with_image(launched, "/b.eif"))
    assert caught.value.why.startswith(why)
    ended = house.history[: house.history.index("--")]
    assert "close relay/enclave/2 /b.eif" in ended
    assert not [line for line in ended if line.startswith(("publish", "close relay /a.eif"))]


@pytest.mark.parametrize("why", ["no memory", "fixed CID"])
@without_waiting
async def test_where_there_is_no_room_for_two_the_old_one_goes_first(
    house: House, launched: EnclaveSpec, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    if why == "fixed CID":
        address = VsockAddress(Cid(16), Port(51820))
        launched = replace(launched, enclave=replace(launched.enclave, address=address, provisioning_address=None))
    else:
        house.capacity = 1
    member = await serving(house, launched)
    began = asyncio.get_running_loop().time()
    await Replacement(member, with_image(launched, "/b.eif"), 3, house.make, no_other).run()
    assert asyncio.get_running_loop().time() - began < 5  # ready_timeout is not awaited in vain
    assert "interrupts the service" in caplog.text
    served = [line for line in house.history if line in {"close relay /a.eif", "serve relay /b.eif"}]
    assert served == ["close relay /a.eif", "serve relay /b.eif"]
    assert member.attendant.spec.launch == with_image(launched, "/b.eif").launch
    await member.end()


@without_waiting
async def test_an_old_one_that_went_first_comes_back_if_the_new_one_is_no_good(
    house: House, launched: EnclaveSpec
) -> None:
    house.cannot_launch["/b.eif"] = NO_ROOM  # beside the old one, and alone as well
    began = asyncio.get_running_loop().time()
    with pytest.raises(ReplacementError, match="was not replaced"):
        await replaced(house, launched, with_image(launched, "/b.eif", ready_timeout=300.0))
    assert asyncio.get_running_loop().time() - began < 2 * FREED_WITHIN  # nobody serves in that time
    assert house.history[: house.history.index("--")][-2:] == ["close relay /b.eif", "open relay /a.eif"]


@without_waiting
async def test_capacity_that_another_change_frees_is_awaited(
    house: House, launched: EnclaveSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    house.capacity = 1

    async def other_ends() -> bool:
        house.capacity = 2
        return True

    member = await serving(house, launched)
    await Replacement(member, with_image(launched, "/b.eif"), 3, house.make, other_ends).run()
    await member.end()
    assert "interrupts the service" not in caplog.text
    assert house.history[-2:] == ["close relay /a.eif", "close relay/enclave/2 /b.eif"]


@pytest.mark.parametrize("moment", ["open", "close"])
@without_waiting
async def test_a_cancellation_leaves_nothing_half_closed(house: House, launched: EnclaveSpec, moment: str) -> None:
    house.capacity, house.opening, house.closing = 1, 2.0, 5.0
    member = await serving(house, launched)
    task = asyncio.ensure_future(Replacement(member, with_image(launched, "/b.eif"), 3, house.make, no_other).run())
    # While the new one opens beside the old one, or while the old one closes, as there is no capacity for both.
    await asyncio.sleep(1 if moment == "open" else house.opening + house.closing + 2)
    assert house.made[0].serves == (moment == "open")
    assert house.history[-1] == ("open" if moment == "open" else "close") + " relay/enclave/2 /b.eif"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await member.end()
    opened = [line.removeprefix("open ") for line in house.history if line.startswith("open ")]
    assert sorted(opened) == sorted(line.removeprefix("close ") for line in house.history if line.startswith("close "))


@pytest.mark.parametrize("cid", [Cid(0xFFFFFFFF), Cid(16)], ids=["beside", "in place"])
@without_waiting
async def test_the_new_one_has_the_addresses_of_names_that_its_policy_allows(
    house: House, launched: EnclaveSpec, cid: Cid
) -> None:
    egress = EgressSettings("deny", (RuleSettings(name="*.lab.test"),))
    enclave = replace(launched.enclave, address=VsockAddress(cid, Port(51820)), provisioning_address=None)
    spec = replace(launched, egress=egress, enclave=enclave)
    member = await serving(house, spec)
    old = member.attendant.room.uplink.egress
    await old.pin("www.lab.test", [(ip_address("203.0.113.10"), 60.0)])
    wanted = replace(with_image(spec, "/b.eif"), egress=EgressSettings("deny", (RuleSettings(name="www.lab.test"),)))
    await Replacement(member, wanted, 3, house.make, no_other).run()
    new = member.attendant.room.uplink.egress
    await member.end()
    assert new is not old
    assert [(pin.name, str(pin.address)) for pin in new.live()] == [("www.lab.test", "203.0.113.10")]
