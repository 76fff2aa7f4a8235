"""Enclaves are started, kept, stopped and replaced individually."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import pytest

from tests.unit.relay.fakes import House, images, with_image
from wgvsock import settings
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.errors import ReloadError, ReplacementError, UplinkError
from wgvsock.relay.fleet import Fleet
from wgvsock.relay.orders import Outcome
from wgvsock.relay.sections import DnsSettings
from wgvsock.testing import without_waiting

PCRS = "\n".join(f'pcr{index} = "{str(index + 1) * 96}"' for index in (0, 1, 2))


def config(*names: str, image: str = "/a.eif", extra: str = "") -> RelayConfig:
    text = f"[[attestation.pcr_sets]]\n{PCRS}\n"
    for name in names:
        text += f'[[enclaves]]\nname = "{name}"\nlaunch = {{ image = "{image}" }}\n{extra}\n'
    return settings.parse(RelayConfig, text)


@pytest.fixture
def house() -> House:
    return House()


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited for {what}")


class Running:
    """A fleet that serves."""

    def __init__(self, house: House, *names: str) -> None:
        self.house = house
        self.fleet = Fleet(house.make)
        self.names = names

    async def __aenter__(self) -> Self:
        await self.fleet.open(config(*self.names).specs())
        self.task = asyncio.ensure_future(self.fleet.serve())
        await until(
            lambda: len([line for line in self.house.history if line.startswith("serve")]) == len(self.names), "all"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.fleet.stop()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.fleet.close()

    def change(self, new: RelayConfig) -> dict[str, Outcome]:
        return self.fleet.carry_out(self.fleet.plan(new))


async def begin_replacement(running: Running, wanted: RelayConfig) -> None:
    running.change(wanted)
    await until(lambda: "serve relay/one/2 /b.eif" in running.house.history, "the successor")


@without_waiting
async def test_all_are_opened_before_one_is_served_and_closed_at_the_end(house: House) -> None:
    async with Running(house, "one", "two"):
        pass
    assert house.history == [
        "open relay/one /a.eif",
        "open relay/two /a.eif",
        "serve relay/one /a.eif",
        "serve relay/two /a.eif",
        "close relay/one /a.eif",
        "close relay/two /a.eif",
    ]


@without_waiting
async def test_one_that_cannot_be_set_up_stops_the_start_and_all_is_taken_back(house: House) -> None:
    house.cannot_open["/a.eif"] = UplinkError("no way")
    fleet = Fleet(house.make)
    with pytest.raises(UplinkError):
        await fleet.open(config("one", "two").specs())
    await fleet.close()
    assert house.history == ["open relay/one /a.eif", "close relay/one /a.eif"]


@without_waiting
async def test_the_end_of_one_is_no_other_s_and_the_last_one_s_is_the_fleet_s(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with Running(house, "one", "two") as running:
        house.made[0].fail(UplinkError("the first"))
        await until(lambda: "but the others are" in caplog.text, "the log line")
        assert not running.task.done()
        house.made[1].fail(UplinkError("the second"))
        with pytest.raises(UplinkError, match="the second"):
            await running.task
    assert caplog.text.count("the others are") == 1


@without_waiting
async def test_of_two_that_end_at_once_one_is_told_of_and_the_other_ends_the_fleet(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with Running(house, "one", "two") as running:
        house.made[0].fail(UplinkError("the first"))
        house.made[1].fail(UplinkError("the second"))
        with pytest.raises(UplinkError, match="the second"):
            await running.task
    assert caplog.text.count("but the others are") == 1


@without_waiting
async def test_a_fleet_that_is_cancelled_closes_everything(house: House) -> None:
    async with Running(house, "one") as running:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        await running.fleet.close()
        assert house.history[-1] == "close relay/one /a.eif"


@without_waiting
async def test_a_reload_starts_stops_and_keeps(house: House) -> None:
    async with Running(house, "one", "two") as running:
        running.change(config("two", "three"))
        await until(lambda: "serve relay/three /a.eif" in house.history, "the third")
        await until(lambda: "close relay/one /a.eif" in house.history, "the first one's end")
        assert list(running.fleet.members) == ["two", "three"]
        assert "adopt relay/two /a.eif" in house.history
        assert house.made[1].spec.interface.name == "wg1"  # the second stays where it is
        assert house.made[2].spec.interface.name != "wg1"


@without_waiting
async def test_a_new_one_that_cannot_be_set_up_disturbs_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with Running(house, "one") as running:
        house.cannot_open["/a.eif"] = UplinkError("no way")
        running.change(config("one", "two"))
        await until(lambda: "the enclave is not served" in caplog.text, "the log line")
        assert list(running.fleet.members) == ["one"]
        assert "close relay/two /a.eif" in house.history


@without_waiting
async def test_what_cannot_change_is_refused_before_anything_changes(house: House) -> None:
    async with Running(house, "one") as running:
        (entry,) = config("one").enclaves
        assert entry.launch is not None
        other = replace(entry, launch=replace(entry.launch, image="/b.eif", cpu_count=4))
        with pytest.raises(ReloadError) as caught:
            running.change(replace(config("one"), enclaves=(other, *config("two").enclaves)))
        assert caught.value.why == '"launch" has changed'
        assert [line for line in house.history if not line.startswith(("open", "serve"))] == []


@without_waiting
async def test_another_image_replaces_the_enclave(house: House) -> None:
    async with Running(house, "one") as running:
        running.change(config("one", image="/b.eif"))
        with pytest.raises(ReplacementError, match="already being replaced"):
            running.fleet.replace(running.fleet.members["one"].attendant.spec)
        await until(lambda: running.fleet.members["one"].replacement is None, "the replacement")
        (attendant,) = running.fleet.attendants
        assert attendant.spec.owner == "relay/one/2"
        assert not running.task.done()
        running.change(config("one", image="/b.eif"))
        assert house.history[-1] == "adopt relay/one/2 /b.eif"  # it stays where it is


@without_waiting
async def test_a_stop_in_the_middle_of_a_replacement_ends_both(house: House) -> None:
    house.never_ready.add("/b.eif")
    async with Running(house, "one") as running:
        await begin_replacement(running, config("one", image="/b.eif"))
        (snapshot,) = running.fleet.snapshots()
        assert snapshot.replacement is not None
        assert snapshot.replacement.address == "/b.eif"
        running.fleet.stop(keep_flows=True)
        await running.task
        assert {"close relay/one /a.eif", "close relay/one/2 /b.eif"} <= set(house.history)
        assert (house.made[0].keep_flows, house.made[1].keep_flows) == (True, False)


@without_waiting
async def test_a_successor_s_interface_is_none_that_the_operator_named(house: House) -> None:
    fleet = Fleet(house.make)
    (entry,) = config("one").enclaves
    named = replace(config("one"), enclaves=(replace(entry, interface="wg1"),))
    await fleet.open(named.specs())
    task = asyncio.ensure_future(fleet.serve())
    await until(lambda: house.made[0].serves, "the first")
    fleet.replace(with_image(house.made[0].spec, "/b.eif"))
    await until(lambda: fleet.members["one"].replacement is None, "the replacement")
    assert fleet.attendants[0].spec.interface.name not in {"wg0", "wg1"}
    fleet.stop()
    await task
    await fleet.close()


@without_waiting
async def test_the_exit_status_is_that_of_the_first_application_that_failed(house: House) -> None:
    async with Running(house, "a", "b", "c") as running:
        assert running.fleet.exit_status == 0
        for attendant, status in zip(house.made, (0, 3, 4), strict=True):
            attendant.exit_status = status
        assert running.fleet.exit_status == 3


def places(house: House) -> list[int]:
    return [attendant.spec.place for attendant in house.made]


async def settled(running: Running) -> None:
    members = running.fleet.members
    await until(lambda: all(one.replacement is None for one in members.values()), "the replacements")


@without_waiting
async def test_enclaves_that_get_another_image_in_one_reload_share_no_place(house: House) -> None:
    async with Running(house, "one", "two") as running:
        running.change(config("one", "two", "three", image="/b.eif"))
        await settled(running)
        assert sorted(running.fleet.members) == ["one", "three", "two"]
        assert len(set(places(house))) == len(house.made) == 5


@without_waiting
async def test_a_new_enclave_gets_no_place_of_a_successor(house: House) -> None:
    async with Running(house, "one") as running:
        await begin_replacement(running, config("one", image="/b.eif"))
        running.change(config("one", "two", image="/b.eif"))
        await settled(running)
        running.change(config("one", "two", "three", image="/b.eif"))
        await until(lambda: len(running.fleet.members) == 3, "the last one")
        assert len(set(places(house))) == len(house.made) == 4


@pytest.mark.parametrize("capacity", [2, 3])
@without_waiting
async def test_several_replacements_wait_for_the_capacity_that_one_needs(
    house: House, caplog: pytest.LogCaptureFixture, capacity: int
) -> None:
    caplog.set_level("INFO")
    house.capacity = capacity
    async with Running(house, "one", "two") as running:
        running.change(config("one", "two", image="/b.eif"))
        await settled(running)
        assert ("interrupts the service" in caplog.text) == (capacity == 2)
        assert images(running.fleet.attendants) == {"/b.eif"}
        assert sum(attendant.serves for attendant in house.made) == 2


@without_waiting
async def test_an_enclave_that_is_removed_in_the_middle_of_its_replacement_is_gone(house: House) -> None:
    house.never_ready.add("/b.eif")
    house.closing = 5
    async with Running(house, "one", "two") as running:
        one, two = config("one", "two").enclaves
        assert two.launch is not None
        running.change(replace(config("one"), enclaves=(one, replace(two, launch=replace(two.launch, image="/b.eif")))))
        await until(lambda: "serve relay/two/2 /b.eif" in house.history, "the successor")
        outcome = running.change(config("one"))["two"]
        assert running.change(config("one"))["two"] is outcome
        running.change(config("one", "three"))  # while the successor's room is still being closed
        with pytest.raises(ReplacementError, match="cannot replace") as caught:
            running.fleet.replace(running.fleet.members["two"].attendant.spec)
        assert caught.value.why == "it is already being stopped"
        assert await outcome is None
        assert list(running.fleet.members) == ["one", "three"]
        assert len(set(places(house))) == len(house.made) == 4
        assert images(one for one in house.made if one.serves) == {"/a.eif"}
        assert {"close relay/two /a.eif", "close relay/two/2 /b.eif"} <= set(house.history)


@without_waiting
async def test_an_enclave_that_comes_back_while_it_is_stopped_is_started_again(house: House) -> None:
    house.closing = 5
    async with Running(house, "one", "two") as running:
        gone = running.change(config("one"))["two"]
        back = running.change(config("one", "two"))["two"]
        again = running.change(config("one", "two"))["two"]
        assert (await gone, await back, await again) == (None, None, None)
        assert [one.serves for one in house.made] == [True, False, True]
        assert [house.history.count(f"{what} relay/two /a.eif") for what in ("open", "serve", "close")] == [2, 2, 1]


@without_waiting
async def test_an_enclave_that_is_removed_while_it_is_started_is_gone(house: House) -> None:
    house.opening = 5
    async with Running(house, "one") as running:
        running.change(config("one", "two"))
        twice = running.change(config("one", "two"))["two"]
        outcome = running.change(config("one"))["two"]
        assert (await twice, await outcome) == (None, None)
        assert list(running.fleet.members) == ["one"]
        assert house.history[-1] == "close relay/two /a.eif"
        assert len(house.made) == 2


STRICTER = """egress = { default = 'deny' }
[[enclaves.publish]]
protocol = "tcp"
port = 443"""


@without_waiting
async def test_a_stricter_policy_does_not_wait_for_the_end_of_a_replacement_as_ports_do(house: House) -> None:
    house.never_ready.add("/b.eif")
    async with Running(house, "one") as running:
        await begin_replacement(running, config("one", image="/b.eif"))
        outcome = running.change(config("one", image="/b.eif", extra=STRICTER))["one"]
        assert {"adopt relay/one /a.eif", "adopt relay/one/2 /b.eif"} <= set(house.history)
        assert [(one.spec.egress.default, one.spec.nat.publish) for one in house.made] == [("deny", ())] * 2
        house.never_ready.clear()
        assert await outcome is None
        assert house.history[-1] == "adopt relay/one/2 /b.eif"
        (attendant,) = running.fleet.attendants
        assert [port.port for port in attendant.spec.nat.publish] == [443]


@without_waiting
async def test_what_the_new_image_needs_is_not_imposed_on_the_old_one(house: House) -> None:
    house.never_ready.add("/b.eif")
    stricter = config("one", image="/b.eif", extra=STRICTER)
    async with Running(house, "one") as running:
        await begin_replacement(running, stricter)
        running.change(stricter)  # the same again, as when a ConfigMap is written in two steps
        assert [one.spec.egress.default for one in house.made] == ["allow", "deny"]
        (entry,) = stricter.enclaves
        for extra in (DnsSettings(forward=True), DnsSettings(search=("a.test",))):
            running.change(replace(stricter, enclaves=(replace(entry, dns=extra),)))
            assert [one.spec.dns for one in house.made] == [extra, extra]
        assert [one.spec.egress.default for one in house.made] == ["allow", "deny"]
        house.never_ready.clear()
        await settled(running)
        assert running.fleet.attendants[0].spec.egress.default == "deny"


@without_waiting
async def test_an_enclave_that_is_not_yet_launched_gets_the_stricter_policy_as_well(house: House) -> None:
    house.capacity, house.closing = 1, 20
    async with Running(house, "one") as running:
        running.change(config("one", image="/b.eif"))
        await until(lambda: not house.made[0].serves, "the old one to close")
        assert await running.change(config("one", image="/b.eif", extra=STRICTER))["one"] is None
        assert house.history[-1] == "adopt relay/one /b.eif"  # its ports
        assert [one.first.egress.default for one in house.made] == ["allow", "allow", "deny"]


@without_waiting
async def test_a_reload_that_the_enclave_would_refuse_changes_nothing_during_a_replacement(house: House) -> None:
    house.never_ready.add("/b.eif")
    async with Running(house, "one") as running:
        await begin_replacement(running, config("one", image="/b.eif"))
        with pytest.raises(ReloadError):
            running.change(config("one", image="/b.eif", extra="interface = 'wg9'"))
        assert house.history[-1] == "serve relay/one/2 /b.eif"


@without_waiting
async def test_a_reload_with_a_third_image_in_the_middle_of_a_replacement_follows_it(house: House) -> None:
    async with Running(house, "one") as running:
        running.change(config("one", image="/b.eif"))
        assert await running.change(config("one", image="/c.eif"))["one"] is None
        await settled(running)
        assert images(running.fleet.attendants) == {"/c.eif"}
        assert sum(one.serves for one in house.made) == 1


@without_waiting
async def test_what_cannot_be_changed_is_told_when_its_turn_comes(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with Running(house, "one") as running:
        running.change(config("one", image="/b.eif"))
        (entry,) = config("one").enclaves
        assert entry.launch is not None
        larger = replace(entry, launch=replace(entry.launch, image="/b.eif", cpu_count=4))
        outcome = running.change(replace(config("one"), enclaves=(larger,)))["one"]
        assert isinstance(await outcome, ReloadError)
        assert "the enclave keeps its settings" in caplog.text
