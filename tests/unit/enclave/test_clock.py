"""The enclave's clock: compared with the relay's, and set only where the image permits it, by the party it names."""

from __future__ import annotations

from typing import Literal

import pytest

from wgvsock import settings
from wgvsock.enclave.clock import ClockSettings, EnclaveClock
from wgvsock.errors import ConfigurationError
from wgvsock.system.errors import ClockError
from wgvsock.telemetry.schema import CLOCK_SUSPECT
from wgvsock.testing import ManualClock
from wgvsock.testing.machine import MemoryMachine

TRUTH = ManualClock()
Source = Literal["never", "relay", "ptp"]


class Machine(MemoryMachine):
    """A clock that the test moves."""

    def __init__(self, ahead: float) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.clock.step_wall_clock(ahead)
        self.set_to: list[int] = []

    def monotonic(self) -> float:
        return self.clock.now

    def wall_clock(self) -> int:
        return self.clock.wall_clock()

    def set_wall_clock(self, unix_time: int) -> None:
        self.set_to.append(unix_time)
        self.clock.step_wall_clock((unix_time - self.wall_clock()) / 10**9)

    def hardware_clock(self) -> int:
        super().hardware_clock()
        return ManualClock(self.clock.now).wall_clock() + round((self.clock.now - 1000) * 10**9)


def heard(ahead: float, source: Source) -> tuple[EnclaveClock, Machine]:
    """A clock that is this many seconds ahead, and has received the relay's time."""
    machine = Machine(ahead)
    clock = EnclaveClock(machine, ClockSettings(source))
    assert clock.offset is None
    clock.hear(TRUTH.wall_clock() // 1_000_000)
    return clock, machine


@pytest.mark.parametrize("ahead", [-7.0, 0.0, 3.0, 100.0])
def test_the_difference_is_told(ahead: float, caplog: pytest.LogCaptureFixture) -> None:
    clock, machine = heard(ahead, "never")
    assert clock.offset == pytest.approx(ahead)
    assert ("differ" in caplog.text) is (abs(ahead) >= CLOCK_SUSPECT)
    clock.proved()
    clock.follow_hardware()
    assert machine.set_to == []


def test_only_a_relay_that_has_proved_itself_sets_the_clock() -> None:
    clock, machine = heard(100.0, "relay")
    machine.clock.advance(2.5)
    assert machine.set_to == []
    clock.proved()
    assert machine.set_to == [TRUTH.wall_clock() + 2_500_000_000]
    assert clock.offset == pytest.approx(0)
    clock.follow_hardware()
    assert len(machine.set_to) == 1


def test_a_small_difference_is_left_alone() -> None:
    clock, machine = heard(0.05, "relay")
    clock.proved()
    assert machine.set_to == []


def test_the_hypervisors_clock_is_followed_and_no_relays() -> None:
    clock, machine = heard(-30.0, "ptp")
    clock.proved()
    assert machine.set_to == [TRUTH.wall_clock()]
    assert clock.offset == pytest.approx(0)


def test_without_a_hardware_clock_nothing_is_set(caplog: pytest.LogCaptureFixture) -> None:
    clock, machine = heard(-30.0, "ptp")
    machine.has_hardware_clock = False
    clock.proved()
    assert machine.set_to == []
    assert "the clock is not set" in caplog.text


def test_a_kernel_that_refuses(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, machine = heard(-30.0, "relay")

    def refuse(_: int) -> None:
        raise ClockError("cannot set the clock", why="the test says so", fix="change the test")

    monkeypatch.setattr(machine, "set_wall_clock", refuse)
    clock.proved()
    assert "the clock is not set" in caplog.text
    assert clock.offset == pytest.approx(-30)


def test_before_any_relay_there_is_nothing_to_set() -> None:
    machine = Machine(50.0)
    clock = EnclaveClock(machine, ClockSettings("relay"))
    clock.proved()
    assert machine.set_to == []


def test_the_settings() -> None:
    assert settings.parse(ClockSettings, "") == ClockSettings("never")
    with pytest.raises(ConfigurationError):
        settings.parse(ClockSettings, 'set = "ntp"')
