"""The compat framing on TCP: with wireguard-go behind a bridge, and with the paper's program.

A build of the paper's program (wireguard-go-vsock) is used if WGVSOCK_PEER_STREAM names one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from lab.deadline import patiently
from lab.netns import namespaces
from lab.process import LocalProcess
from tests.e2e.wg.keys import Identity, identity
from tests.e2e.wg.machines import WIREGUARD_GO, Implementation, Machine, machines, require, short_timers, wgvsock

BRIDGE = Path(__file__).parent / "wg" / "bridge.py"
OURS, THEIRS = identity("ours"), identity("theirs")
LEFT_PORT, RIGHT_PORT = 51820, 51821


class Remote(Protocol):
    """The foreign end of the tunnel: listens for streams on `RIGHT_PORT`."""

    def restart(self) -> None: ...

    def kill(self) -> None: ...

    def set_endpoint(self, address: str) -> None: ...


def prepare(machine: Machine, interface: str, *, keys: tuple[Identity, Identity], peer: str, port: int) -> None:
    """Give an interface its own key and address, and the peer's key and inner address."""
    own, other = keys
    file = machine.directory / f"{interface}.key"
    file.write_text(own.private)
    peer_settings = ("peer", other.public, "allowed-ips", f"{peer}/32")
    machine.wg("set", interface, "private-key", file, "listen-port", str(port), *peer_settings)
    machine.run("ip", "addr", "add", f"{machine.inner}/24", "dev", interface)
    machine.run("ip", "link", "set", interface, "up")


class Bridged:
    """wireguard-go, which speaks UDP with the bridge on its own machine."""

    def __init__(self, machine: Machine, left: Machine) -> None:
        self.machine = machine
        self.left = left
        self.wireguard = WIREGUARD_GO.start(machine, "wgb")
        prepare(machine, "wgb", keys=(THEIRS, OURS), peer=left.inner, port=52000)
        self.bridge = self._start_bridge()

    def _start_bridge(self) -> LocalProcess:
        dial = f"{self.left.address}:{LEFT_PORT}"
        bridge = self.machine.start(sys.executable, BRIDGE, str(RIGHT_PORT), "52000", "52001", dial, name="bridge")
        bridge.wait_for_line("bridge ready", patiently(10))
        return bridge

    def kill(self) -> None:
        self.bridge.kill()

    def restart(self) -> None:
        self.bridge.kill()
        self.bridge = self._start_bridge()

    def set_endpoint(self, address: str) -> None:
        del address  # the bridge knows it
        self.machine.wg("set", "wgb", "peer", OURS.public, "endpoint", "127.0.0.1:52001")


class PaperProgram:
    """The program that WGVSOCK_PEER_STREAM names."""

    def __init__(self, machine: Machine, left: Machine) -> None:
        self.machine = machine
        self.left = left
        self.implementation = Implementation("paper", (os.environ["WGVSOCK_PEER_STREAM"], "-n", "tcp"))
        self._start()

    def _start(self) -> None:
        self.process = self.implementation.start(self.machine, "wgb")
        prepare(self.machine, "wgb", keys=(THEIRS, OURS), peer=self.left.inner, port=RIGHT_PORT)

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        self.process.kill()
        patiently(10).poll(lambda: "wgb" not in namespaces.interfaces(self.machine.namespace), "the interface to go")
        self._start()

    def set_endpoint(self, address: str) -> None:
        self.machine.wg("set", "wgb", "peer", OURS.public, "endpoint", address)


@dataclass
class Pair:
    left: Machine
    right: Machine
    device: LocalProcess
    remote: Remote

    def dial(self) -> None:
        """wgvsock's end dials the other."""
        self.left.wg("set", "wga", "peer", THEIRS.public, "endpoint", f"{self.right.address}:{RIGHT_PORT}")

    def be_dialled(self) -> None:
        """The other end dials wgvsock's."""
        self.remote.set_endpoint(f"{self.left.address}:{LEFT_PORT}")

    def works(self) -> bool:
        return self.left.reaches(self.right.inner)

    def works_backwards(self) -> bool:
        return self.right.reaches(self.left.inner)


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    require("wg", "wireguard-go", "ping")
    with machines(tmp_path, "left", "right") as (left, right):
        yield left, right


def start_ours(machine: Machine, implementation: Implementation) -> LocalProcess:
    device = implementation.start(machine, "wga", level="info")
    prepare(machine, "wga", keys=(OURS, THEIRS), peer="10.9.0.2", port=LEFT_PORT)
    return device


@pytest.fixture(params=["bridge", "paper"])
def pair(request: pytest.FixtureRequest, cable: tuple[Machine, Machine]) -> Pair:
    left, right = cable
    if request.param == "paper" and not shutil.which(os.environ.get("WGVSOCK_PEER_STREAM", "")):
        pytest.skip("missing: a build of wireguard-go-vsock, named by WGVSOCK_PEER_STREAM")
    remote: Remote = (Bridged if request.param == "bridge" else PaperProgram)(right, left)
    return Pair(left, right, start_ours(left, short_timers("tcp", 2.0)), remote)


def test_we_dial(pair: Pair) -> None:
    pair.dial()
    patiently(10).poll(pair.works, "a ping")
    assert pair.works_backwards()
    assert pair.left.wg("show", "wga", "endpoints").split()[1] == f"{pair.right.address}:{RIGHT_PORT}"


def test_they_dial(pair: Pair) -> None:
    pair.be_dialled()
    patiently(20).poll(pair.works_backwards, "a ping")
    assert pair.works()


def test_both_dial(pair: Pair) -> None:
    pair.dial()
    pair.be_dialled()
    patiently(20).poll(lambda: pair.works() and pair.works_backwards(), "pings both ways")


def test_rekeys_over_the_stream(pair: Pair) -> None:
    pair.dial()
    patiently(10).poll(pair.works, "a ping")
    seen: set[str] = set()

    def three_handshakes() -> bool:
        seen.add(pair.left.wg("show", "wga", "latest-handshakes"))
        assert pair.works()
        return len(seen) >= 3

    patiently(30).poll(three_handshakes, "three handshakes")


def test_keepalives_over_the_stream(pair: Pair) -> None:
    pair.dial()
    pair.left.wg("set", "wga", "peer", THEIRS.public, "persistent-keepalive", "1")

    def received() -> int:
        return int(pair.right.wg("show", "wgb", "transfer").split()[1])

    patiently(10).poll(received, "the handshake")
    first = received()
    patiently(10).poll(lambda: received() >= first + 3 * 32, "three keepalives")


@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_iperf3(pair: Pair, *, reverse: bool) -> None:
    require("iperf3")
    pair.dial()
    patiently(10).poll(pair.works, "a ping")
    server = pair.right.start("iperf3", "-s", "-1", name="iperf3-server")
    patiently(5).poll(lambda: ":5201" in pair.right.run("ss", "-Hlnt"), "iperf3 to listen")
    options = ["-R"] if reverse else []
    report = json.loads(pair.left.run("iperf3", "-c", pair.right.inner, "-t", "2", "-J", *options))
    server.wait(patiently(10))
    assert report["end"]["sum_received"]["bytes"] > 1_000_000


def test_the_remote_is_restarted(pair: Pair) -> None:
    pair.dial()
    patiently(10).poll(pair.works, "a ping")
    pair.remote.restart()
    patiently(20).poll(pair.works, "a ping after the restart")


def test_our_end_is_restarted(pair: Pair) -> None:
    pair.dial()
    patiently(10).poll(pair.works, "a ping")
    pair.device.kill()
    patiently(10).poll(lambda: "wga" not in namespaces.interfaces(pair.left.namespace), "the interface to go")
    start_ours(pair.left, wgvsock("tcp"))
    pair.dial()
    patiently(20).poll(pair.works, "a ping after the restart")


@pytest.mark.parametrize("framing", ["compat", "native"])
@pytest.mark.parametrize("carrier", ["unix", "tcp", "vsock"])
def test_two_of_ours(cable: tuple[Machine, Machine], carrier: str, framing: str) -> None:
    left, right = cable
    implementation = wgvsock(carrier, "--framing", framing)
    port = RIGHT_PORT + 10
    for machine, interface, keys in ((left, "wga", (OURS, THEIRS)), (right, "wgb", (THEIRS, OURS))):
        other = right if machine is left else left
        implementation.start(machine, interface)
        prepare(machine, interface, keys=keys, peer=other.inner, port=port + machine.index)
    host = {"unix": "127.0.0.1", "tcp": right.address, "vsock": "0.0.0.16"}[carrier]
    left.wg("set", "wga", "peer", THEIRS.public, "endpoint", f"{host}:{port + right.index}")
    patiently(10).poll(lambda: left.reaches(right.inner), "a ping")
    assert right.reaches(left.inner)
    for machine, interface in ((left, "wga"), (right, "wgb")):
        assert machine.wg("show", interface).count("latest handshake") == 1  # stock wg survives every endpoint
