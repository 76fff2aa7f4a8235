"""Two enclaves behind one Relay: each is attested, served, stopped and lost separately, and isolated from the other."""

from __future__ import annotations

import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from lab import uplinks
from lab.ladder import Ladder
from lab.netns.build import namespace
from lab.schedule.command import play
from lab.schedule.load import Load
from lab.schedule.site import Site
from lab.schedule.watch import Rules, Watch
from lab.topology import Node, Tenant

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BOTH = (Node.ENCLAVE, Node.SECOND)
NEIGHBOUR = {Node.ENCLAVE: Node.SECOND, Node.SECOND: Node.ENCLAVE}
FAMILIES = (4, 6)


@pytest.fixture
def both(two_enclaves: Ladder) -> Ladder:
    two_enclaves.raise_all()
    return two_enclaves


def echo(tenant: Tenant) -> str:
    return str(tenant.application.echo_port)


def serves(lab: Ladder, node: Node) -> bool:
    """Return whether an enclave reaches the outside and is reached, in both families."""
    topology = lab.topology
    tenant = topology.tenant(node)
    return all(
        lab.try_probe(*probe, "--timeout", "2")["ok"]
        for family in FAMILIES
        for probe in (
            (node, "tcp", getattr(topology, f"external{family}"), "7"),
            (Node.EXTERNAL, "tcp", getattr(topology, f"pod{family}"), echo(tenant)),
            (Node.EXTERNAL, "udp", getattr(topology, f"pod{family}"), echo(tenant)),
        )
    )


def stop(lab: Ladder, node: Node) -> None:
    if node is Node.ENCLAVE:
        assert lab.enclave is not None
        lab.enclave.kill()
        lab.enclave = None
    else:
        lab.neighbours.pop(node).kill()


def start(lab: Ladder, node: Node) -> None:
    lab.start_enclave() if node is Node.ENCLAVE else lab.start_neighbour(node)


@contextlib.contextmanager
def traffic(lab: Ladder, node: Node) -> Iterator[Callable[[], None]]:
    """Start traffic of one enclave in both directions. Call the result to check that none of it broke."""
    site = Site(lab)
    room = next(room for room in site.own_rooms if room.node is node)
    topology = lab.topology
    load = Load(lab.backend, f"wgvsock-{secrets.token_hex(8)}")
    outside = topology.service(Node.EXTERNAL)
    world, pod = (topology.external4, topology.external6), (topology.pod4, topology.pod6)
    load.start(node, room, "egress", hosts=world, service=outside)
    load.start(Node.EXTERNAL, room, "published", hosts=pod, service=room.service)

    def goes_on() -> None:
        since = time.time()
        lab.backend.deadline(10).poll(lambda: not load.behind(since), "the traffic to go on")

    def nothing_broke() -> None:
        goes_on()
        cuts, failed = load.take(room.number)
        assert [cut.what for cut in cuts] == []
        assert [request.what for request in failed] == []

    try:
        goes_on()
        load.take(room.number)
        yield nothing_broke
    finally:
        load.stop()


def test_both_are_served(both: Ladder) -> None:
    assert all(serves(both, node) for node in BOTH)
    status = both.relay_status()
    assert status["ready"]
    assert [entry["name"] for entry in status["enclaves"]] == ["first", "second"]


def test_each_is_attested_by_its_own_measurements(both: Ladder) -> None:
    first, second = (both.enclave_status(node)["attestation"] for node in BOTH)
    assert first["pcrs"]["PCR0"] != second["pcrs"]["PCR0"]
    assert first["module_id"] != second["module_id"]
    assert first["public_key"] != second["public_key"]


def test_an_enclave_with_the_other_s_image_is_refused_and_the_other_serves(two_enclaves: Ladder) -> None:
    config = two_enclaves.backend.relay_config()
    first, second = config["enclaves"]
    second["attestation"]["pcr_sets"] = first["attestation"]["pcr_sets"]
    start(two_enclaves, Node.ENCLAVE)
    start(two_enclaves, Node.SECOND)
    two_enclaves.start_relay(config)
    deadline = two_enclaves.backend.deadline(20)
    deadline.poll(lambda: ready(two_enclaves) == {"first": True, "second": False}, "the first alone to be ready")
    deadline.poll(
        lambda: two_enclaves.enclave_status(Node.SECOND)["provisioning"]["attempts"]["rejected"], "the refusal"
    )
    assert serves(two_enclaves, Node.ENCLAVE)
    assert not two_enclaves.try_probe(Node.SECOND, "tcp", two_enclaves.topology.external4, "7", "--timeout", "1")["ok"]


def ready(lab: Ladder) -> dict[str, bool]:
    """Return what the Relay reports about each, while it answers."""
    status = lab.backend.status(Node.POD)
    return {} if status is None else {entry["name"]: entry["ready"] for entry in status["enclaves"]}


@pytest.mark.parametrize("node", BOTH)
def test_one_that_comes_later_is_served_then(two_enclaves: Ladder, node: Node) -> None:
    start(two_enclaves, NEIGHBOUR[node])
    two_enclaves.start_relay()
    name, other = (two_enclaves.topology.tenant(one).name for one in (node, NEIGHBOUR[node]))
    deadline = two_enclaves.backend.deadline(20)
    deadline.poll(lambda: ready(two_enclaves) == {name: False, other: True}, f"{other} alone to be ready")
    with traffic(two_enclaves, NEIGHBOUR[node]) as nothing_broke:
        start(two_enclaves, node)
        two_enclaves.wait_ready()
        assert serves(two_enclaves, node)
        nothing_broke()


@pytest.mark.parametrize("node", BOTH)
def test_losing_one_is_nothing_to_the_other(both: Ladder, node: Node) -> None:
    other = NEIGHBOUR[node]
    name = both.topology.tenant(node).name
    with traffic(both, other) as nothing_broke:
        stop(both, node)
        both.backend.deadline(20).poll(lambda: not ready(both)[name], "the Relay to notice")
        nothing_broke()
        assert both.enclave_status(other)["ready"]
        start(both, node)
        both.wait_ready()
        nothing_broke()
    assert serves(both, node)


@pytest.mark.parametrize("node", BOTH)
def test_a_stream_that_is_cut_is_nothing_to_the_other(both: Ladder, node: Node) -> None:
    tap = both.backend.tap_of(node)  # type: ignore[attr-defined]
    with traffic(both, NEIGHBOUR[node]) as nothing_broke:
        tap.refuse()
        tap.drop()
        name = both.topology.tenant(node).name
        both.backend.deadline(10).poll(lambda: not ready(both)[name], "the Relay to notice")
        nothing_broke()
        tap.resume()
        both.wait_ready()
        nothing_broke()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_passes_from_one_to_the_other(both: Ladder, family: int) -> None:
    """Neither to its address, nor to the Relay's end of its tunnel, not even a packet that gets no answer."""
    topology = both.topology
    tunnels = {f"{Node.POD}.{room.interface}": room.networks for room in Site(both).rooms}
    watch = Watch({"pod": namespace(both.backend.prefix, Node.POD)}, Rules(tunnels))  # type: ignore[attr-defined]
    try:
        for node in BOTH:
            neighbour = topology.tenant(NEIGHBOUR[node])
            host = getattr(neighbour, f"enclave{family}")
            patience = ("--timeout", "0.7")
            assert not both.try_probe(node, "ping", host, *patience)["ok"]
            for protocol in ("tcp", "udp"):
                assert not both.try_probe(node, protocol, host, echo(neighbour), *patience)["ok"]
                # The published port of the other, by the pod's own address: it is for the uplink's clients.
                pod = getattr(topology, f"pod{family}")
                assert not both.try_probe(node, protocol, pod, echo(neighbour), *patience)["ok"]
            assert serves(both, node)
    finally:
        watch.close()
    crossed = [str(one) for one in watch.take() if not is_own_packet(both, one.interface, one.source)]
    if uplinks.asked_for() == "userspace":  # no interface leads to a tunnel: the pod asks its network for the address
        crossed = [one for one in crossed if f" at {Node.POD}.eth0" not in one]
    assert crossed == []


def is_own_packet(lab: Ladder, interface: str, source: str) -> bool:
    """Return whether a tunnel carries what its own enclave sent: the packet enters it, and goes no further."""
    return any(one.interface == interface and source in {one.enclave4, one.enclave6} for one in lab.topology.tenants)


def test_metrics_name_the_enclave(both: Ladder) -> None:
    script = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/wgvsock/relay.sock')"
    script += "; s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
    text = both.backend.run(Node.POD, ["python3", "-c", script]).check().stdout.decode()
    for name in ("first", "second"):
        assert f'enclave="{name}"' in text
    lines = [line for line in text.splitlines() if line.startswith("wgvsock_enclave_ready")]
    assert any('enclave="second"' in line and line.endswith(" 1") for line in lines), lines


def test_a_restart_of_the_relay_keeps_the_connections_of_both(both: Ladder) -> None:
    site = Site(both)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(kept_connections(both, site, node)) for node in BOTH]
        both.restart_relay()
        both.wait_ready()
        for nothing_was_cut in kept:
            nothing_was_cut()


@contextlib.contextmanager
def kept_connections(lab: Ladder, site: Site, node: Node) -> Iterator[Callable[[], None]]:
    """Open TCP connections of one enclave. Call the result to check that none was cut and all continue."""
    room = next(room for room in site.own_rooms if room.node is node)
    load = Load(lab.backend, "kept")
    world = (lab.topology.external4, lab.topology.external6)
    load.start(node, room, "egress", hosts=world, service=lab.topology.service(Node.EXTERNAL))

    def go_on() -> None:
        since = time.time()
        lab.backend.deadline(15).poll(lambda: not load.behind(since), "the connections to go on")

    def nothing_was_cut() -> None:
        go_on()
        cuts, _ = load.take(room.number)
        assert [cut.what for cut in cuts] == []

    try:
        go_on()
        yield nothing_was_cut
    finally:
        load.stop()


def test_nothing_is_left_when_all_are_stopped(two_enclaves: Ladder) -> None:
    before = {node: two_enclaves.state(node) for node in (Node.POD, *BOTH)}
    two_enclaves.raise_all()
    changes_nothing = uplinks.asked_for() == "userspace"
    assert (two_enclaves.state(Node.POD) == before[Node.POD]) == changes_nothing
    two_enclaves.stop_relay(signal.SIGTERM)
    two_enclaves.stop()
    assert {node: two_enclaves.state(node) for node in before} == before


@pytest.mark.parametrize("seed", [21, 22])
def test_a_schedule_of_faults_on_two_enclaves(two_enclaves: Ladder, seed: int) -> None:
    assert play(two_enclaves, seed, 13).complaints == []
