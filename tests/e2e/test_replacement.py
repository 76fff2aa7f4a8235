"""An enclave is replaced by one with another image, under load: clients that connect continuously notice nothing.

The Relay launches its enclaves through the laboratory's nitro-cli, whose enclaves are processes (`lab.nitro.local`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import uplinks
from lab.cli.raising import why_not_here
from lab.config import to_toml
from lab.image.eif import measure
from lab.laboratory import LAB, serving
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.nitro.enclaves import Limits
from lab.nitro.local import LocalParent, environment, write_image
from lab.schedule.census import count_process
from lab.schedule.load import TRAFFIC, Generator, Ledger
from lab.topology import Node

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NITRO_CLI = str(LAB / "bin/nitro-cli")
WGVSOCK = str(Path(sys.executable).with_name("wgvsock"))
MEMORY = 512
VERSIONS = ("one", "two", "three")
EVERY = 0.02
"""Seconds between two new connections of each family."""


class Site:
    """The laboratory with a parent instance, and images that serve their own names."""

    def __init__(self, backend: NetnsBackend, folder: Path) -> None:
        self.backend = backend
        self.ladder = Ladder(backend)
        self.parent = LocalParent(folder / "s", Limits(memory_mib=4096, cpu_count=8))
        self.folder = folder
        self.root = self.parent.start_signer()
        self.measured = {
            name: self._image(name, serving(backend.topology.application, name)) for name in (*VERSIONS, "unknown")
        }
        self.measured["silent"] = self._image("silent", ["sleep", "infinity"])
        backend.vsock_folder = self.parent.vsock

    def _image(self, name: str, application: list[str]) -> dict[str, str]:
        image = write_image(self.image(name), application, name=name)
        return {f"pcr{number}": value.hex() for number, value in measure(image).items() if number in {0, 1, 2}}

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.eif"

    def config(self, **launch: Any) -> dict[str, Any]:
        config = dict(self.backend.relay_config())
        del config["enclave"], config["interface"]  # an address of the pool, and the CID that nitro-cli gives
        config["launch"] = {
            "image": str(self.image("one")),
            "memory_mib": MEMORY,
            "cpu_count": 1,
            "nitro_cli": NITRO_CLI,
            "drain_timeout": 5,
            "ready_timeout": 20,
            **launch,
        }
        accepted = [self.measured[name] for name in (*VERSIONS, "silent")]
        config["attestation"] = {"root_sha256": [self.root], "pcr_sets": accepted}
        return config

    def config_of_two(self, image: str) -> dict[str, Any]:
        """Two enclaves from one image, the second one's application published on the next port."""
        config = self.config(image=str(self.image(image)))
        own = {key: config.pop(key) for key in ("launch", "attestation")}
        del config["nat"]
        port = self.backend.topology.application.http_port
        config["enclaves"] = [
            {"name": name, **own, "publish": [{"protocol": "tcp", "port": published, "enclave_port": port}]}
            for name, published in (("first", port), ("second", port + 1))
        ]
        return config

    def start(self, **launch: Any) -> None:
        self.ladder.start_relay(self.config(**launch))
        self.ladder.wait_ready()
        self.wait_for("one")

    def served(self, number: int = 0) -> set[str]:
        """Return which images' applications answer new connections to an enclave now, in both families."""
        topology = self.backend.topology
        port = str(topology.application.http_port + number)
        probes = [self.ladder.try_probe(Node.EXTERNAL, "http", host, port) for host in (topology.pod4, topology.pod6)]
        return {str(probe.get("body")).strip() for probe in probes}

    def wait_for(self, name: str) -> None:
        """Wait until new connections go to an image, and no other enclave is left."""
        deadline = self.backend.deadline(25)
        deadline.poll(lambda: self.served() == {f"hello from {name}"}, f"{name} to be served")
        deadline.poll(lambda: len(self.described()) == 1 and not self.is_replacing(), "the other to be gone")

    def replace(self, name: str) -> None:
        """Do what an operator does."""
        argv = [WGVSOCK, "relay", "replace", "--image", str(self.image(name))]
        self.backend.run(Node.POD, [*argv, "--config", str(self.backend.directory / "relay.toml")]).check()

    def is_replacing(self) -> bool:
        return self.ladder.enclave_status()["replacement"] is not None

    def wait_until_given_up(self) -> None:
        assert self.ladder.relay is not None
        self.ladder.relay.wait_for_line("was not replaced", self.backend.deadline(30))
        self.backend.deadline(10).poll(lambda: not self.is_replacing(), "the attempt to be over")

    def described(self) -> list[dict[str, Any]]:
        """Return the enclaves that nitro-cli knows."""
        done = subprocess.run([NITRO_CLI, "describe-enclaves"], capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def parent_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := why_not_here(NetnsBackend):
        pytest.skip(f"the netns backend cannot run here: {reason}")
    folder = tmp_path_factory.mktemp("r")
    backend = NetnsBackend(f"{os.getpid():x}r")
    patch = pytest.MonkeyPatch()
    for name, value in environment(folder / "s").items():
        patch.setenv(name, value)
    site = Site(backend, folder)
    try:
        backend.up()
        yield site
    finally:
        site.ladder.clear()
        backend.down()
        site.parent.close()
        patch.undo()
    assert backend.leftovers() == []


@pytest.fixture
def site(parent_instance: Site) -> Iterator[Site]:
    """Nothing runs. What the test starts is stopped afterwards, and no enclave is left."""
    yield parent_instance
    parent_instance.ladder.clear()
    assert parent_instance.described() == []


@contextlib.contextmanager
def load(site: Site, *options: str) -> Iterator[Generator]:
    """Clients of the published port."""
    topology = site.backend.topology
    argv = [*TRAFFIC, *options]
    for host in (topology.pod4, topology.pod6):
        argv += ["--http", host, str(topology.application.http_port), "--every", str(EVERY)]
    process = site.backend.spawn(Node.EXTERNAL, argv, name="clients")
    generator = Generator(process, Ledger("clients", "published"), 0)
    try:
        began = time.time()
        site.backend.deadline(10).poll(lambda: requests_since(generator, began), "clients to be served")
        yield generator
    finally:
        process.kill()


@contextlib.contextmanager
def kept_connection(site: Site) -> Iterator[Generator]:
    """One TCP connection to the application that continues for as long as possible."""
    topology = site.backend.topology
    argv = [*TRAFFIC, "--echo", topology.pod4, str(topology.application.echo_port)]
    process = site.backend.spawn(Node.EXTERNAL, argv, name="kept")
    kept = Generator(process, Ledger("kept", "published"), 0)
    try:
        now = time.time()
        site.backend.deadline(10).poll(lambda: kept.read().flows.get("tcp4", 0.0) > now, "the connection")
        yield kept
    finally:
        process.kill()


def requests_since(generator: Generator, since: float) -> bool:
    requests = generator.read().requests
    return bool(requests) and all(entry["last"] >= since for entry in requests.values())


REFUSED_AT_MOST = 12
"""In user space, of all replacements in this file: in a gap of milliseconds each family may lose a connection or two.
It is refused, or accepted by a socket that is closed before the engine takes it."""


def nobody_was_let_down(site: Site, generator: Generator) -> int:
    """Return how many were served, after checking that all were."""
    now = time.time()
    site.backend.deadline(10).poll(
        lambda: requests_since(generator, now) and not generator.read().pending(now), "clients to be served"
    )
    ledger = generator.read()
    failed = [request.what for request in ledger.failed]
    if uplinks.asked_for() == "userspace":  # a port is bound once the old engine has left it (docs/userspace.md)
        refused = [what for what in failed if "ConnectionRefusedError" in what or "ConnectionResetError" in what]
        assert len(refused) <= REFUSED_AT_MOST
        failed = [what for what in failed if what not in refused]
    assert failed == []
    assert [cut.what for cut in ledger.cuts] == []
    return sum(int(entry["ok"]) for entry in ledger.requests.values())


def test_the_image_changes_twice_and_nobody_is_refused(site: Site) -> None:
    site.start()
    with load(site) as clients:
        for name in ("two", "three"):
            site.replace(name)
            site.wait_for(name)
        served = nobody_was_let_down(site, clients)
    assert served > 100
    attestation = site.ladder.enclave_status()["attestation"]
    assert attestation["pcrs"]["PCR2"] == site.measured["three"]["pcr2"]
    assert site.ladder.relay_status()["ready"]


def test_what_was_open_goes_on_until_it_ends(site: Site) -> None:
    site.start(drain_timeout=60)
    with load(site) as clients:
        with kept_connection(site) as kept:
            site.replace("two")
            site.backend.deadline(25).poll(lambda: site.served() == {"hello from two"}, "the new one to be served")
            shifted = time.time()
            site.backend.deadline(10).poll(lambda: kept.read().flows["tcp4"] > shifted + 2, "the connection to go on")
            assert kept.read().cuts == []
            assert len(site.described()) == 2
        site.wait_for("two")
        nobody_was_let_down(site, clients)


@pytest.mark.parametrize("end", ["killed", "restarted"])
@pytest.mark.parametrize("times", [1, 2])
def test_connections_to_the_new_one_live_through_a_restart_of_the_relay(site: Site, times: int, end: str) -> None:
    """Its addresses are its own: a restarted Relay has to find it in the spare place, or back in the first."""
    site.start(drain_timeout=1)
    for name in VERSIONS[1 : 1 + times]:
        site.replace(name)
        site.wait_for(name)
    with kept_connection(site) as kept:
        disturb(site, end)
        site.ladder.wait_ready()
        ready = time.time()
        site.backend.deadline(20).poll(lambda: kept.read().flows["tcp4"] > ready, "the connection to go on")
        assert kept.read().cuts == []


def test_what_does_not_end_is_cut_at_the_deadline(site: Site) -> None:
    site.start(drain_timeout=2)
    with kept_connection(site):
        site.replace("two")
        site.wait_for("two")


@pytest.mark.parametrize("name", ["unknown", "silent"])
def test_a_new_one_that_is_no_good_leaves_the_old_one_serving(site: Site, name: str) -> None:
    """One that the policy refuses, and one whose application does not listen."""
    site.start(ready_timeout=4)
    (before,) = site.described()
    with load(site) as clients:
        site.replace(name)
        site.wait_until_given_up()
        site.wait_for("one")
        nobody_was_let_down(site, clients)
    assert site.described() == [before]
    assert site.ladder.relay_status()["ready"]


def test_a_reload_with_another_image_replaces_it_and_the_same_again_disturbs_nobody(site: Site) -> None:
    site.start()
    with load(site) as clients:
        path = site.backend.directory / "relay.toml"
        path.write_text(to_toml(site.config(image=str(site.image("two")))))
        assert site.ladder.relay is not None
        site.ladder.relay.signal(signal.SIGHUP)
        site.backend.deadline(20).poll(site.is_replacing, "the new one to be launched")
        site.ladder.relay.signal(signal.SIGHUP)
        site.backend.deadline(5).poll(lambda: reload_of(site)["order"] == 2, "the second reload")
        assert reload_of(site)["done"] is False
        site.wait_for("two")
        site.backend.deadline(5).poll(lambda: reload_of(site)["done"], "the second reload to be in force")
        assert reload_of(site)["enclaves"]["enclave"]["error"] is None
        nobody_was_let_down(site, clients)


def test_two_that_get_another_image_in_one_reload_take_turns_where_there_is_capacity_for_three(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGVSOCK_LAB_ENCLAVE_MEMORY", str(3 * MEMORY + MEMORY // 2))
    ladder = site.ladder

    def serves_two(number: int) -> bool:
        return site.served(number) == {"hello from two"}

    ladder.start_relay(site.config_of_two("one"))
    ladder.wait_ready()
    with load(site) as clients:
        (site.backend.directory / "relay.toml").write_text(to_toml(site.config_of_two("two")))
        assert ladder.relay is not None
        ladder.relay.signal(signal.SIGHUP)
        deadline = site.backend.deadline(60)
        for number in (0, 1):
            deadline.poll(partial(serves_two, number), f"enclave {number} to be replaced")
        deadline.poll(lambda: len(site.described()) == 2, "the others to be gone")
        nobody_was_let_down(site, clients)
    assert "until another change ends" in ladder.relay.output()
    assert "interrupts the service" not in ladder.relay.output()


def reload_of(site: Site) -> dict[str, Any]:
    """The last reload."""
    status = site.ladder.relay_status()
    found: dict[str, Any] = status["reload"]
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent with capacity for one enclave."""
    monkeypatch.setenv("WGVSOCK_LAB_ENCLAVE_MEMORY", str(MEMORY + MEMORY // 2))


def test_without_room_for_two_there_is_a_short_gap_and_it_says_so(site: Site, small: None) -> None:
    site.start()
    site.replace("two")
    site.wait_for("two")
    assert site.ladder.relay is not None
    assert "interrupts the service" in site.ladder.relay.output()


def test_without_room_for_two_the_old_one_comes_back_where_the_new_one_is_no_good(site: Site, small: None) -> None:
    site.start(ready_timeout=4)
    site.replace("unknown")
    site.wait_until_given_up()
    site.wait_for("one")


@pytest.mark.parametrize("end", [lambda relay: relay.kill(), lambda relay: relay.signal(signal.SIGTERM)])
def test_a_relay_that_ends_meanwhile_leaves_one_enclave_to_the_next(site: Site, end: Callable[[Any], None]) -> None:
    site.start()
    site.replace("two")
    site.backend.deadline(20).poll(lambda: len(site.described()) == 2, "both to run")
    relay = site.ladder.relay
    assert relay is not None
    end(relay)
    relay.wait(site.backend.deadline(20))
    site.ladder.start_relay(site.config())
    site.ladder.wait_ready()
    site.backend.deadline(20).poll(lambda: len(site.described()) == 1, "one to be left")
    assert len(site.served()) == 1


def holdings(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    """Return the relay's idle descriptors and tasks: two counts that agree."""
    relay, path = site.ladder.relay, site.backend.tasks_of("relay")
    assert relay is not None
    deadline = site.backend.deadline(20)

    def count() -> tuple[dict[str, int], dict[str, int]]:
        census = count_process(relay, path, deadline)
        return dict(census.descriptors), dict(census.tasks)

    seen = [count()]

    def agree() -> bool:
        seen.append(count())
        return seen[-1] == seen[-2]

    deadline.poll(agree, "the relay to rest")
    return seen[-1]


def disturb(site: Site, kind: str) -> None:
    """What may happen to the machine or the Relay while an image is being replaced."""
    ladder = site.ladder
    assert ladder.relay is not None
    match kind:
        case "killed":
            ladder.relay.kill()
            ladder.start_relay(site.config())
        case "restarted":
            ladder.stop_relay(signal.SIGUSR2)
            ladder.start_relay(site.config())
        case "attested again":
            ladder.relay.signal(signal.SIGUSR1)
        case "engine killed":
            kill_engines(site)
        case _:
            site.backend.run(Node.POD, ["sh", "-ec", MACHINE[kind]]).check()


def kill_engines(site: Site) -> None:
    """Kill the engine of each room that has one at this moment."""
    rooms = site.ladder.relay_status()["enclaves"]
    pids = [str(pid) for room in rooms if (pid := ((room["nat"] or {}).get("engine") or {}).get("pid"))]
    if pids:
        site.backend.run(Node.POD, ["kill", "-KILL", *pids])  # one may have ended since


USERSPACE = uplinks.asked_for() == "userspace"
MACHINE = {
    "flushed": "nft flush ruleset",
    "forwarding off": "cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 0 > ip_forward",
    "down": "for i in $(ls /sys/class/net | grep ^wg); do ip link set $i down; done",
    "addresses gone": "for i in $(ls /sys/class/net | grep ^wg); do ip address flush dev $i; done",
}


@pytest.mark.parametrize("seed", [1, 2])
def test_replacements_among_other_faults_leave_one_enclave_that_serves(site: Site, seed: int) -> None:
    """As in a schedule (`lab.schedule`): each kind once, in any order, at any moment of a replacement."""
    draw = random.Random(seed)
    site.backend.counting = True
    kinds = [*(["engine killed"] if USERSPACE else MACHINE), "killed", "restarted", "attested again"]
    draw.shuffle(kinds)
    site.start(drain_timeout=1)
    with load(site) as clients:
        for number, kind in enumerate(kinds):
            name = VERSIONS[number % len(VERSIONS)]
            site.replace(name)
            time.sleep(draw.uniform(0.0, 1.5))
            disturb(site, kind)
            deadline = site.backend.deadline(40)
            deadline.poll(lambda: site.ladder.look_ready() is not None, f"the Relay to be ready ({kind})")
            deadline.poll(lambda: len(site.described()) == 1 and not site.is_replacing(), f"one enclave ({kind})")
            right = time.time()
            deadline.poll(partial(requests_since, clients, right), f"clients to be served ({kind})")
            assert len(site.served()) == 1
            assert kind in {"killed", "restarted"} or site.served() == {f"hello from {name}"}
        late = [request.what for request in clients.read().failed if request.begin > right]
        assert late == []
    listing = "ls /sys/class/net | grep -c ^wg; nft list tables | grep -c wgvsock; true"
    counts = site.backend.run(Node.POD, ["sh", "-c", listing]).check().stdout.split()
    assert counts == ([b"0", b"0"] if USERSPACE else [b"1", b"1"])
    used = holdings(site)
    site.ladder.clear()
    site.start()
    assert used == holdings(site)
