"""Which uplink an enclave gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from wgvsock.devices.errors import TunForbiddenError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.choice import Way, choose
from wgvsock.relay.uplink.kernel import KernelUplink
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.relay.uplink.reach import KernelReach, UserspaceReach
from wgvsock.relay.uplink.userspace import UserspaceUplink
from wgvsock.relay.uplink_settings import UplinkSettings
from wgvsock.runtime.journal import Journal
from wgvsock.testing.machine import MemoryMachine

Mode = Literal["kernel", "userspace", "auto"]


class Bench:
    """A machine that provides interfaces to some."""

    def __init__(self, spec: EnclaveSpec, folder: Path) -> None:
        self.spec = spec
        self.machine = MemoryMachine()
        self.machine.monotonic = lambda: 0.0  # type: ignore[method-assign]
        self.journal = Journal(str(folder), "relay", {})
        self.journal.open()
        self.ways: list[Way] = []

    def forbid(self) -> None:
        def refuse(name: str, *, packet_headroom: int) -> Any:
            raise TunForbiddenError(f"cannot make {name}", why=str(packet_headroom), fix="")

        self.machine.open_tun = refuse  # type: ignore[method-assign]

    def choose(self, mode: Mode) -> Way:
        spec = replace(self.spec, uplink=UplinkSettings(mode=mode))
        scope = self.journal.scope(spec.owner)
        self.ways.append(choose(spec, self.machine, cast("Any", self.machine.kernel), scope, 10))
        return self.ways[-1]


@pytest.fixture
def bench(spec: EnclaveSpec, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(spec, tmp_path)
    yield made
    for way in made.ways:
        way.tun.close()
    made.journal.close()


@pytest.mark.parametrize("mode", ["kernel", "auto"])
def test_the_kernels_where_an_interface_can_be_made(bench: Bench, mode: Mode) -> None:
    way = bench.choose(mode)
    assert isinstance(way.uplink, KernelUplink)
    assert isinstance(way.reach, KernelReach)
    assert way.tun is bench.machine.tuns[0]
    assert (way.dns_sockets, way.profile) == (None, None)
    way.joined(lambda _: None)


@pytest.mark.parametrize("mode", ["userspace", "auto"])
def test_user_space_where_none_can_be_made(bench: Bench, mode: Mode) -> None:
    bench.forbid()
    way = bench.choose(mode)
    assert isinstance(way.uplink, UserspaceUplink)
    assert isinstance(way.reach, UserspaceReach)
    assert isinstance(way.tun, Mouth)
    assert way.tun.packet_headroom == 10
    assert way.dns_sockets is not None
    assert way.profile == "plain"
    sent: list[bytes] = []
    way.joined(sent.append)
    way.uplink.tell(b"packet")
    assert sent == [b"packet"]
    assert not way.is_open()


def test_who_asks_for_the_kernels_gets_it_or_the_reason_why_not(bench: Bench) -> None:
    bench.forbid()
    with pytest.raises(TunForbiddenError):
        bench.choose("kernel")


def test_who_asks_for_user_space_makes_no_interface(bench: Bench) -> None:
    bench.choose("userspace")
    assert bench.machine.tuns == []
