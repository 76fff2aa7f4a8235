"""A machine with several addresses answers from the one that received the request, as long as that works.

The middle of the kernel's own test (tools/testing/selftests/wireguard/netns.sh, from "Now we show that we can
successfully do reply to sender routing") with wireguard-go at the other end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_wg_interop import PORT, Side
from tests.e2e.wg.machines import WIREGUARD_GO, Machine, machines, require, wgvsock

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])

ESTABLISHED_ONLY = """
table inet wgvsock-test {
    chain in {
        type filter hook input priority 0; policy drop;
        iifname "wg*" accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
}
"""


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """wgvsock and wireguard-go, each the other's peer. Neither knows yet where the other one is."""
    require("wg", "wireguard-go", "ping", "nft")
    with machines(tmp_path, "left", "right") as (left, right):
        theirs, ours = Side(left, "wga", WIREGUARD_GO), Side(right, "wgb", wgvsock("udp"))
        theirs.add_peer(ours)
        ours.add_peer(theirs)
        yield ours, theirs


def address(number: int, family: int) -> str:
    return f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}"


def endpoint(number: int, family: int) -> str:
    return f"{address(number, family)}:{PORT}" if family == 4 else f"[{address(number, family)}]:{PORT}"


def add(machine: Machine, number: int, family: int, interface: str = "eth0") -> None:
    extra = ("nodad",) if family == 6 else ()
    machine.run("ip", "addr", "add", f"{address(number, family)}/{24 if family == 4 else 64}", "dev", interface, *extra)


def remove(machine: Machine, number: int, family: int) -> None:
    machine.run("ip", "addr", "del", f"{address(number, family)}/{24 if family == 4 else 64}", "dev", "eth0")


def aim(side: Side, other: Side, where: str) -> None:
    side.set_peer(other.identity, "endpoint", where)


@FAMILIES
def test_a_client_behind_a_firewall_hears_the_address_that_it_spoke_to(sides: tuple[Side, Side], family: int) -> None:
    ours, theirs = sides
    add(ours.machine, 16, family)
    add(ours.machine, 17, family)
    theirs.machine.run("nft", "-f", "-", stdin=ESTABLISHED_ONLY)
    for number in (16, 17, 2):
        aim(theirs, ours, endpoint(number, family))
        assert theirs.machine.reaches(ours.machine.inner)
        assert theirs.shown("endpoints") == endpoint(number, family)
        assert ours.machine.reaches(theirs.machine.inner), "a packet that answers nothing leaves from there as well"
        assert theirs.shown("endpoints") == endpoint(number, family)


@FAMILIES
def test_an_address_that_vanishes_is_not_missed(sides: tuple[Side, Side], family: int) -> None:
    ours, theirs = sides
    aim(theirs, ours, endpoint(2, family))
    assert theirs.machine.reaches(ours.machine.inner)
    add(ours.machine, 16, family)
    # Else the second address of a network goes with the first.
    ours.machine.run("sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1")
    remove(ours.machine, 2, family)
    assert ours.machine.reaches(theirs.machine.inner)
    assert theirs.shown("endpoints") == endpoint(16, family)
    assert theirs.machine.reaches(ours.machine.inner)


@FAMILIES
def test_an_endpoint_set_by_hand_leaves_the_choice_to_the_kernel(sides: tuple[Side, Side], family: int) -> None:
    ours, theirs = sides
    add(ours.machine, 16, family)
    choice = 2 if family == 4 else None  # of IPv6 addresses that are equally good the kernel takes the latest
    aim(theirs, ours, endpoint(16, family))
    assert theirs.machine.reaches(ours.machine.inner)
    assert theirs.shown("endpoints") == endpoint(16, family)
    aim(ours, theirs, endpoint(1, family))
    assert ours.machine.reaches(theirs.machine.inner)
    assert theirs.shown("endpoints") == endpoint(choice or 16, family)


def test_another_interface_s_address_answers(sides: tuple[Side, Side]) -> None:
    """The route to the client uses an interface other than the one with the address."""
    ours, theirs = sides
    ours.machine.run("ip", "link", "add", "inside", "type", "bridge")
    ours.machine.run("ip", "addr", "add", "10.50.0.1/24", "dev", "inside")
    ours.machine.run("ip", "link", "set", "inside", "up")
    theirs.machine.run("ip", "route", "add", "10.50.0.0/24", "dev", "eth0")
    aim(theirs, ours, f"10.50.0.1:{PORT}")
    assert theirs.machine.reaches(ours.machine.inner)
    assert theirs.shown("endpoints") == f"10.50.0.1:{PORT}"


def test_a_better_route_over_another_interface_is_taken(sides: tuple[Side, Side]) -> None:
    """Otherwise a machine that moves from Wi-Fi to a cable would use the Wi-Fi's address on the cable."""
    ours, theirs = sides
    machine = ours.machine
    theirs.machine.run("ip", "link", "add", "to-x", "type", "veth", "peer", "name", "eth1", "netns", machine.namespace)
    theirs.machine.run("ip", "link", "set", "to-x", "master", "eth0", "up")
    machine.run("ip", "link", "set", "eth1", "up")
    add(machine, 3, 4, "eth1")
    machine.run("ip", "route", "flush", "dev", "eth0")
    machine.run("ip", "route", "flush", "dev", "eth1")
    for interface in ("all", "eth0", "eth1"):
        machine.run("sysctl", "-qw", f"net.ipv4.conf.{interface}.rp_filter=0")
    machine.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "src", "192.0.2.2", "metric", "2")
    aim(ours, theirs, f"192.0.2.1:{PORT}")
    assert machine.reaches(theirs.machine.inner)
    assert theirs.shown("endpoints") == f"192.0.2.2:{PORT}"
    machine.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth1", "src", "192.0.2.3", "metric", "1")
    assert machine.reaches(theirs.machine.inner)
    assert theirs.shown("endpoints") == f"192.0.2.3:{PORT}"
