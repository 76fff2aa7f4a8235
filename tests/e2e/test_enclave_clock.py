"""The enclave's wall clock: the difference is reported, and only the source that the image names sets it.

In a namespace it would be this machine's own clock, which no test sets, so this needs a guest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lab.ladder import Ladder
from lab.qemu.backends import GuestBackend
from lab.qemu.machine import Machine
from lab.topology import Node

pytestmark = pytest.mark.lab

SLOW = -300.0
"""Seconds. A document may be two minutes old, and has the module's time, not that of this clock."""

NEAR = 1.0


@pytest.fixture
def guest(own_lab: Ladder) -> Iterator[Machine]:
    """The enclave's guest, whose clock is slow."""
    if not isinstance(own_lab.backend, GuestBackend):
        pytest.skip("the enclave has no separate clock in a namespace")
    machine = own_lab.backend.enclave_guest
    machine.channel().set_clock(time.time() + SLOW)
    yield machine
    machine.channel().set_clock(time.time())


def ahead(machine: Machine) -> float:
    """Seconds that the guest's clock is ahead of this machine's."""
    return -machine.channel().clock_offset()[0]


def start(lab: Ladder, **clock: str) -> None:
    lab.start_enclave({**lab.backend.enclave_config(), "clock": clock}, application=["sleep", "600"])
    lab.start_relay()
    lab.wait_ready()


def told(lab: Ladder) -> float | None:
    """Return the Relay's status."""
    seconds: float | None = lab.enclave_status()["clock_offset_seconds"]
    return seconds


def test_by_default_the_difference_is_told_and_nothing_is_set(own_lab: Ladder, guest: Machine) -> None:
    start(own_lab)
    own_lab.backend.deadline(20).poll(lambda: told(own_lab) is not None, "the difference to be told")
    assert abs((told(own_lab) or 0.0) - SLOW) < NEAR
    assert abs(ahead(guest) - SLOW) < NEAR


def test_a_relay_that_has_proved_itself_sets_it(own_lab: Ladder, guest: Machine) -> None:
    start(own_lab, set="relay")
    assert abs(ahead(guest)) < NEAR
    own_lab.backend.deadline(20).poll(lambda: abs(told(own_lab) or SLOW) < NEAR, "the status to follow")


def test_the_hypervisors_clock_sets_it_before_any_relay_comes(own_lab: Ladder, guest: Machine) -> None:
    loaded = guest.run(["modprobe", "ptp_kvm"])
    if guest.run(["test", "-c", "/dev/ptp0"]).exit_code:
        pytest.skip(f"the guest has no PTP clock of its hypervisor: {loaded.stderr.decode().strip()}")
    own_lab.start_enclave({**own_lab.backend.enclave_config(), "clock": {"set": "ptp"}}, application=["sleep", "600"])
    own_lab.backend.deadline(20).poll(lambda: own_lab.backend.status(Node.ENCLAVE), "the agent")
    assert abs(ahead(guest)) < NEAR


def test_without_the_hypervisors_clock_the_enclave_serves_all_the_same(own_lab: Ladder, guest: Machine) -> None:
    guest.run(["modprobe", "-r", "ptp_kvm"])
    if guest.run(["test", "-c", "/dev/ptp0"]).exit_code == 0:
        pytest.skip("the guest's clock of its hypervisor cannot be taken away")
    start(own_lab, set="ptp")
    assert own_lab.enclave is not None
    assert "cannot read the hypervisor's clock /dev/ptp0" in own_lab.enclave.output()
    assert abs(ahead(guest) - SLOW) < NEAR
