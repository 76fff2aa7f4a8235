"""wg-quick up and down with `wgvsock-device` as its userspace implementation, connected to wireguard-go's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.deadline import patiently
from lab.netns import namespaces
from tests.e2e.wg.keys import identity, preshared_key
from tests.e2e.wg.machines import DEVICE, Machine, machines, require

LEFT, RIGHT = identity("left"), identity("right")
OURS = {
    "WG_QUICK_USERSPACE_IMPLEMENTATION": "wgvsock-device",
    "PATH": f"{DEVICE.parent}:{os.environ['PATH']}",
}
THEIRS = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"}


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    require("wg-quick", "wireguard-go", "ping")
    with machines(tmp_path, "left", "right") as (left, right):
        yield left, right


def configuration(machine: Machine, other: Machine, *, allowed_ips: str, endpoint: str) -> Path:
    """A file as an administrator writes it."""
    ours, theirs = (LEFT, RIGHT) if machine.name == "left" else (RIGHT, LEFT)
    interface = "wga" if machine.name == "left" else "wgb"
    file = machine.directory / f"{interface}.conf"
    file.touch(mode=0o600)
    file.write_text(
        f"""\
[Interface]
Address = {machine.inner}/24, {machine.inner6}/64
PrivateKey = {ours.private}
ListenPort = 51820
PostUp = touch {machine.directory}/up-%i
PostDown = touch {machine.directory}/down-%i

[Peer]
PublicKey = {theirs.public}
PresharedKey = {preshared_key("quick")}
AllowedIPs = {allowed_ips}
Endpoint = {endpoint}
PersistentKeepalive = 25
"""
    )
    return file


def quick(machine: Machine, verb: str, file: Path, environment: Mapping[str, str]) -> str:
    return machine.run("sh", "-c", f"wg-quick {verb} {file} 2>&1", environment=environment)


def take_down(machine: Machine, file: Path, environment: Mapping[str, str]) -> None:
    """Check that nothing is left: no interface, no control socket, no process, no routing rule."""
    quick(machine, "down", file, environment)

    def gone() -> bool:
        interface = file.stem in namespaces.interfaces(machine.namespace)
        return not (interface or machine.socket(file.stem).exists() or namespaces.processes_in(machine.namespace))

    patiently(10).poll(gone, f"{file.stem} to go")
    assert (machine.directory / f"down-{file.stem}").exists()
    rules = machine.run("ip", "rule").splitlines()
    assert [rule.split("lookup ")[1].strip() for rule in rules] == ["local", "main", "default"]


@pytest.mark.parametrize("carrier", ["udp", "tcp", "unix"])
def test_up_and_down_on_both_ends_of_ours(cable: tuple[Machine, Machine], carrier: str) -> None:
    environment = {**OURS, "WGVSOCK_NETWORK": carrier}
    ports = {"left": "51811", "right": "51812"}
    files = []
    for machine, other in (cable, cable[::-1]):
        host = "127.0.0.1" if carrier == "unix" else other.address
        file = configuration(
            machine, other, allowed_ips=f"{other.inner}/32, {other.inner6}/128", endpoint=f"{host}:{ports[other.name]}"
        )
        file.write_text(file.read_text().replace("51820", ports[machine.name]))
        files.append(file)
        quick(machine, "up", file, environment)
        assert (machine.directory / f"up-{file.stem}").exists()
    left, right = cable
    patiently(10).poll(lambda: left.reaches(right.inner), "a ping")
    assert left.reaches(right.inner6)
    for machine, file in zip(cable, files, strict=True):
        take_down(machine, file, environment)
    assert list((left.directory.parent / "streams").iterdir()) == []  # nor a socket file of a stream


@pytest.mark.parametrize("ours", ["left", "right"])
def test_up_and_down_towards_wireguard_go(cable: tuple[Machine, Machine], ours: str) -> None:
    """With a default route on wgvsock's end: wg-quick then marks its packets, and routes by the mark."""
    files = {}
    for machine, other in (cable, cable[::-1]):
        allowed = "0.0.0.0/0, ::/0" if machine.name == ours else f"{other.inner}/32, {other.inner6}/128"
        files[machine.name] = configuration(machine, other, allowed_ips=allowed, endpoint=f"{other.address}:51820")
        quick(
            machine, "up", files[machine.name], {**OURS, "WGVSOCK_NETWORK": "udp"} if machine.name == ours else THEIRS
        )
    here, there = cable if ours == "left" else cable[::-1]
    patiently(10).poll(lambda: here.reaches(there.inner), "a ping")
    assert there.reaches(here.inner)
    assert here.reaches(there.inner6)
    # Everything goes through the tunnel, but the tunnel itself does not.
    interface = files[ours].stem
    assert f"dev {interface}" in here.run("ip", "route", "get", "203.0.113.9")
    assert here.wg("show", interface, "fwmark").strip() != "off"
    saved = files[ours].read_text()
    quick(here, "save", files[ours], {})
    assert f"Endpoint = {there.address}:51820" in files[ours].read_text()
    assert "FwMark" in files[ours].read_text()
    files[ours].write_text(saved)
    for machine in cable:
        take_down(machine, files[machine.name], {})
