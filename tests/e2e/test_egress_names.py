"""An egress policy of names: what is allowed works at once and continues, everything else is refused and reported.

The external machine has every allowed name's addresses, so what has to stay closed is tested with others: the node's.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lab.ladder import PROBE, Ladder
from lab.netns.backend import NetnsBackend
from lab.topology import TOPOLOGY, Node

pytestmark = pytest.mark.lab

TIMES = 200

WGVSOCK = str(Path(sys.executable).with_name("wgvsock"))

ELSEWHERE = "198.51.100.1"
"""The node's addresses, where a server listens as on the external machine. No allowed name has them."""


def named(*addresses: str) -> str:
    """Return the name that has these addresses."""
    return "-".join(["ip", *(ip_address(address).packed.hex() for address in addresses)]) + f".{TOPOLOGY.zone}"


REBOUND = {
    "metadata": TOPOLOGY.metadata4,
    "metadata by IPv6": TOPOLOGY.metadata6,
    "the gateway": TOPOLOGY.relay4,
    "the pod": TOPOLOGY.pod4,
    "metadata, mapped": f"::ffff:{TOPOLOGY.metadata4}",
}

MIXED = (TOPOLOGY.relay4, TOPOLOGY.external4)

ALLOWED = (
    "*.many.lab.test",
    "alias.lab.test",
    "short.lab.test",
    "svc.lab.test",
    *map(named, REBOUND.values()),
    named(*MIXED),
)

TOGETHER = 150

LOOK_UPS = """
import concurrent.futures, socket, sys
def use(number):
    name = f"n{number}.many.lab.test"
    socket.create_connection((name, 80), timeout=10).close()
with concurrent.futures.ThreadPoolExecutor(int(sys.argv[1])) as pool:
    print(len(list(pool.map(use, range(int(sys.argv[1]))))))
"""

CONNECT = """
import socket, sys, time
took = []
for _ in range(5):
    begin = time.perf_counter()
    try:
        socket.create_connection((sys.argv[1], 80), timeout=5).close()
        print("connected")
        sys.exit()
    except OSError as error:
        took.append(time.perf_counter() - begin)
        why = str(error)
print(min(took), why)
"""


def allowing(lab: Ladder, *names: str) -> dict[str, Any]:
    """Return a Relay's configuration that allows only these names."""
    rules = [{"name": name, "protocol": "any"} for name in names]
    return lab.backend.relay_config() | {"egress": {"default": "deny", "allow": rules}}


@pytest.fixture(scope="module")
def policed(network: Ladder) -> Iterator[Ladder]:
    """The Relay allows some names and nothing else."""
    for tool in ("dig", "curl"):
        if network.backend.run(Node.ENCLAVE, ["sh", "-c", f"command -v {tool}"]).exit_code:
            pytest.skip(f"there is no {tool} in the enclave")
    network.clear()
    network.start_enclave()
    network.start_relay(allowing(network, *ALLOWED))
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


def dig(lab: Ladder, *arguments: str) -> str:
    argv = ["dig", "+noall", "+comments", "+answer", "+tries=1", *arguments]
    return lab.backend.run(Node.ENCLAVE, argv).stdout.decode()


def egress(lab: Ladder) -> dict[str, Any]:
    """Return the output of ``wgvsock egress --json`` for the only enclave."""
    argv = [WGVSOCK, "egress", "--json", "--socket", "/run/wgvsock/relay.sock"]
    (enclave,) = json.loads(lab.backend.run(Node.POD, argv).check().stdout)["enclaves"]
    return dict(enclave)


def queries(lab: Ladder, outcome: str) -> int:
    return int(lab.enclave_status()["dns"]["queries"].get(outcome, 0))


def test_the_enclave_asks_the_relay(policed: Ladder) -> None:
    lines = policed.backend.run(Node.ENCLAVE, ["cat", "/etc/resolv.conf"]).check().stdout.decode()
    assert f"nameserver {policed.topology.relay4}\n" in lines


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("name", ["short.lab.test", "alias.lab.test"])
def test_an_allowed_name_works_each_time(policed: Ladder, name: str, family: str) -> None:
    """At once, and across the ends of its time to live of two seconds, through an alias whose target no rule names."""
    script = f"""
        for i in $(seq {TIMES}); do curl {family} -sS -m 5 http://{name}/ > /dev/null || echo failed $i; done
    """
    done = policed.backend.run(Node.ENCLAVE, ["sh", "-c", script], deadline=policed.backend.deadline(120)).check()
    assert (done.stdout + done.stderr).decode() == ""


def test_many_new_names_at_once_can_be_used_at_once(policed: Ladder) -> None:
    argv = [sys.executable, "-c", LOOK_UPS, str(TOGETHER)]
    done = policed.backend.run(Node.ENCLAVE, argv, deadline=policed.backend.deadline(60)).check()
    assert done.stdout.decode().strip() == str(TOGETHER)
    pinned = {pin["name"] for pin in egress(policed)["pinned"]}
    assert {f"n{number}.many.lab.test" for number in range(TOGETHER)} <= pinned


def test_another_name_is_refused_and_told_of(policed: Ladder) -> None:
    before = queries(policed, "refused_name")
    told = dig(policed, named(ELSEWHERE))
    assert "status: REFUSED" in told
    assert "EDE: 18 (Prohibited)" in told
    report = policed.try_probe(Node.ENCLAVE, "resolve", named(ELSEWHERE))
    assert not report["ok"]
    assert queries(policed, "refused_name") > before
    assert named(ELSEWHERE) in [refused["name"] for refused in egress(policed)["refused"]]


def test_its_address_given_by_hand_is_rejected_at_once_and_told_of(policed: Ladder) -> None:
    done = policed.backend.run(Node.ENCLAVE, [sys.executable, "-c", CONNECT, ELSEWHERE]).check().stdout.decode()
    seconds, _, why = done.partition(" ")
    assert why, done
    assert float(seconds) < 0.05
    denied = [one for one in egress(policed)["denied"] if one["address"] == ELSEWHERE]
    assert [(one["protocol"], one["port"]) for one in denied] == [("tcp", 80)]


def test_other_name_servers_are_refused_like_anything_else(policed: Ladder) -> None:
    assert "status:" not in dig(policed, f"@{ELSEWHERE}", "+time=1", "short.lab.test")


def test_hints_are_pinned_as_addresses_are(policed: Ladder) -> None:
    assert re.search(r"\sHTTPS\s.*ipv4hint", dig(policed, "svc.lab.test", "HTTPS"))
    pinned = {(pin["name"], pin["address"]) for pin in egress(policed)["pinned"]}
    for address in (policed.topology.external4, policed.topology.external6):
        assert ("svc.lab.test", address) in pinned


@pytest.mark.parametrize("what", REBOUND)
def test_an_allowed_name_that_leads_into_a_closed_network_is_refused_and_counted(policed: Ladder, what: str) -> None:
    before, counted = queries(policed, "refused_address"), egress(policed)["addresses_withheld"]
    kind = "AAAA" if ":" in REBOUND[what] else "A"
    told = dig(policed, named(REBOUND[what]), kind)
    assert "status: REFUSED" in told
    assert "EDE: 18 (Prohibited)" in told
    assert queries(policed, "refused_address") == before + 1
    assert egress(policed)["addresses_withheld"] == counted + 1


def test_of_several_addresses_the_open_one_is_told(policed: Ladder) -> None:
    told = dig(policed, named(*MIXED))
    assert "status: NOERROR" in told
    assert policed.topology.external4 in told
    assert policed.topology.relay4 not in told


def test_a_connection_that_began_under_a_pin_outlives_it(policed: Ladder) -> None:
    backend = policed.backend
    if type(backend) is not NetnsBackend:  # a container is a kind of it
        pytest.skip("only network namespaces let the configuration of a running relay be written")
    port = str(policed.topology.service(Node.EXTERNAL).echo_port)
    argv = [*PROBE, "stream", "short.lab.test", port, "--timeout", "5"]
    connection = policed.backend.spawn(Node.ENCLAVE, argv, name="stream", stdin=True)
    connection.wait_for_line('"alive"', policed.backend.deadline(10))
    relay = policed.relay
    assert relay is not None
    backend.write_config(Node.POD, allowing(policed, "nothing.lab.test"))
    relay.signal(signal.SIGHUP)
    try:
        policed.backend.deadline(10).poll(lambda: egress(policed)["pinned"] == [], "the pins to go")
        assert not policed.try_probe(Node.ENCLAVE, "tcp", policed.topology.external4, port, "--timeout", "2")["ok"]
        connection.stdin.close()
        assert connection.wait(policed.backend.deadline(10)) == 0
        report = json.loads(connection.output().splitlines()[-1])
        assert report["sent"] == report["received"]
    finally:
        connection.kill()
        backend.write_config(Node.POD, allowing(policed, *ALLOWED))
        relay.signal(signal.SIGHUP)
        policed.backend.deadline(10).poll(
            lambda: len(egress(policed)["rules"]) == len(ALLOWED), "the rules to come back"
        )
