"""Names that the Relay looks up for the enclave: dig in the enclave gives the same result as on an ordinary host."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from lab.guest.servers import FALSE
from lab.ladder import Ladder
from lab.topology import Node

pytestmark = pytest.mark.lab

DEAD = "198.51.100.99"
"""A neighbour of the external machine that does not exist."""

TOGETHER = 150

LOOK_UPS = """
import concurrent.futures, socket, sys
def look_up(number):
    return {entry[4][0] for entry in socket.getaddrinfo(f"n{number}.lab.test", None, type=socket.SOCK_STREAM)}
with concurrent.futures.ThreadPoolExecutor(int(sys.argv[1])) as pool:
    print(sorted({address for found in pool.map(look_up, range(int(sys.argv[1]))) for address in found}))
"""

STUB = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("127.0.0.53", 53))
print("ready", flush=True)
while True:
    query, client = own.recvfrom(4096)
    with socket.create_connection((sys.argv[1], 53)) as server:
        server.sendall(len(query).to_bytes(2, "big") + query)
        own.sendto(server.recv(4096)[2:], client)
"""


def run(lab: Ladder, command: str, node: Node = Node.POD) -> str:
    return lab.backend.run(node, ["sh", "-c", command]).check().stdout.decode()


def write_resolv_conf(lab: Ladder, *servers: str) -> None:
    text = "".join(f"nameserver {server}\\n" for server in servers)
    run(lab, f"printf '{text}' > /etc/resolv.conf")


def asks(lab: Ladder, *servers: str) -> None:
    """Wait until the Relay queries these servers."""
    lab.backend.deadline(5).poll(
        lambda: lab.enclave_status()["dns"]["servers"] == list(servers), f"{servers} to be asked"
    )


@pytest.fixture(scope="module")
def raised(network: Ladder) -> Iterator[Ladder]:
    """The Relay forwards to the servers in its own resolv.conf."""
    if network.backend.run(Node.ENCLAVE, ["sh", "-c", "command -v dig"]).exit_code:
        pytest.skip("there is no dig in the enclave")
    network.clear()
    before = run(network, "cat /etc/resolv.conf").split()[1::2]
    config = network.backend.relay_config()
    config["dns"] = {"forward": True, "search": [network.topology.zone]}
    write_resolv_conf(network, network.topology.external4)
    network.start_enclave()
    network.start_relay(config)
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()
    write_resolv_conf(network, *before)


@pytest.fixture
def names(raised: Ladder) -> Iterator[Ladder]:
    """With the external machine's name server again."""
    yield raised
    write_resolv_conf(raised, raised.topology.external4)
    asks(raised, raised.topology.external4)


def dig(lab: Ladder, node: Node, *arguments: str) -> list[str]:
    """Return dig's output without the query's ID and times."""
    done = lab.backend.run(node, ["dig", "+noall", "+comments", "+question", "+answer", *arguments])
    lines = done.stdout.decode().splitlines()
    return [re.sub(r", id: \d+", "", line) for line in lines if line and not line.startswith(("; <<>>", ";; global"))]


def test_the_enclave_asks_its_gateways(names: Ladder) -> None:
    topology = names.topology
    lines = run(names, "cat /etc/resolv.conf", Node.ENCLAVE).splitlines()
    assert lines[1:] == [f"nameserver {topology.relay4}", f"nameserver {topology.relay6}", f"search {topology.zone}"]
    assert names.enclave_status()["dns"]["listen"] == [topology.relay4, topology.relay6]


@pytest.mark.parametrize(
    "arguments",
    [
        "www.lab.test A",
        "www.lab.test AAAA",
        "wWw.LaB.tEsT A",
        "alias.lab.test A",
        "www.lab.test TYPE65280",
        "svc.lab.test HTTPS",
        "+tcp www.lab.test A",
        "+noedns www.lab.test A",
        "+dnssec www.lab.test A",
        "+norecurse www.lab.test A",
        "+bufsize=4096 big.lab.test TXT",
        "+bufsize=1232 big.lab.test TXT",
        "+bufsize=1232 +ignore big.lab.test TXT",
        "+tcp big.lab.test TXT",
        "+noedns many.lab.test A",
        "-x 198.51.100.10",
        "-x 2001:db8:100::10",
        "-x 198.51.100.11",
        "nx.lab.test A",
        "fail.lab.test A",
        "www.example.com A",
    ],
)
def test_dig_in_the_enclave_says_what_it_says_on_a_plain_host(names: Ladder, arguments: str) -> None:
    here = dig(names, Node.ENCLAVE, *arguments.split())
    assert here == dig(names, Node.POD, f"@{names.topology.external4}", *arguments.split())
    assert any(line.startswith(";; ->>HEADER<<-") for line in here)


@pytest.mark.parametrize(("name", "seen"), [("wrong-number", 1), ("wrong-name", 1), ("wrong-port", 0)])
def test_false_answers_do_not_reach_the_enclave(names: Ladder, name: str, seen: int) -> None:
    """With another ID, to another question, or from another port, which the kernel already drops."""
    before = names.enclave_status()["dns"]["upstream"].get("wrong", 0)
    told = dig(names, Node.ENCLAVE, f"{name}.lab.test", "A")
    assert any(line.endswith(names.topology.external4) for line in told)
    assert not any("Warning" in line or FALSE in line for line in told)
    assert names.enclave_status()["dns"]["upstream"].get("wrong", 0) == before + seen


def test_over_ipv6(names: Ladder) -> None:
    for options in ([], ["+tcp"]):
        lines = dig(names, Node.ENCLAVE, f"@{names.topology.relay6}", *options, "www.lab.test", "AAAA")
        assert any(line.endswith(names.topology.external6) for line in lines)


def test_any_and_zone_transfers_are_refused(names: Ladder) -> None:
    told = "\n".join(dig(names, Node.ENCLAVE, "+notcp", "lab.test", "ANY"))
    assert "status: REFUSED" in told
    assert "EDE: 21 (Not Supported)" in told
    assert "Transfer failed" in "\n".join(dig(names, Node.ENCLAVE, "lab.test", "AXFR"))


def test_many_look_ups_at_once(names: Ladder) -> None:
    argv = [sys.executable, "-c", LOOK_UPS, str(TOGETHER)]
    done = names.backend.run(Node.ENCLAVE, argv, deadline=names.backend.deadline(30)).check()
    assert done.stdout.decode().strip() == str(sorted([names.topology.external4, names.topology.external6]))
    status = names.enclave_status()["dns"]
    assert "dropped" not in status["queries"]
    assert status["in_flight"] == 0


def test_a_dead_first_server_costs_little_and_once(names: Ladder) -> None:
    write_resolv_conf(names, DEAD, names.topology.external4)
    asks(names, DEAD, names.topology.external4)
    before = names.enclave_status()["dns"]["upstream"].get("timeouts", 0)
    # dig gives up after one try of two seconds: a plain host would have had no answer at all.
    for _ in range(10):
        lines = dig(names, Node.ENCLAVE, "+tries=1", "+time=3", f"@{names.topology.relay4}", "www.lab.test")
        assert any(line.endswith(names.topology.external4) for line in lines)
    status = names.enclave_status()["dns"]
    assert status["silent"] == [DEAD]
    assert status["upstream"]["timeouts"] == before + 1


def test_only_dead_servers_are_a_failure_that_says_so(names: Ladder) -> None:
    write_resolv_conf(names, DEAD)
    asks(names, DEAD)
    told = "\n".join(dig(names, Node.ENCLAVE, "+tries=1", "+time=8", f"@{names.topology.relay4}", "www.lab.test"))
    assert "status: SERVFAIL" in told
    assert "EDE: 22 (No Reachable Authority)" in told or "EDE: 23 (Network Error)" in told


def test_another_resolv_conf_is_followed_and_the_enclave_hears_nothing_of_it(names: Ladder) -> None:
    attested = names.enclave_status()["provisioning"]["attempts"]["ok"]
    write_resolv_conf(names, names.topology.external6)
    asks(names, names.topology.external6)
    assert any(line.endswith(names.topology.external4) for line in dig(names, Node.ENCLAVE, "www.lab.test"))
    assert names.enclave_status()["provisioning"]["attempts"]["ok"] == attested
    assert names.look_ready()


def test_flushed_addresses_come_back_and_so_does_the_name_service(names: Ladder) -> None:
    topology = names.topology
    repairs = names.enclave_status()["nat"]["repairs"].get("interface", 0)
    run(names, "ip address flush dev wg0")
    names.backend.deadline(5).poll(
        lambda: names.enclave_status()["nat"]["repairs"].get("interface", 0) > repairs, "the addresses"
    )
    for gateway in (topology.relay4, topology.relay6):
        for options in ([], ["+tcp"]):
            lines = dig(names, Node.ENCLAVE, f"@{gateway}", *options, "www.lab.test")
            assert any(line.endswith(topology.external4) for line in lines)


def test_nobody_else_is_answered(names: Ladder) -> None:
    """Neither the pod's other programs nor its neighbours, which can send any address to its eth0."""
    topology = names.topology
    run(names, f"ip route add {topology.relay4}/32 via {topology.pod4}", Node.NODE)
    try:
        for node in (Node.POD, Node.NODE):
            for options in ("+notcp", "+tcp"):
                told = dig(names, node, f"@{topology.relay4}", options, "+tries=1", "+time=1", "www.lab.test")
                assert not any("HEADER" in line for line in told)
    finally:
        run(names, f"ip route delete {topology.relay4}/32", Node.NODE)


# -- by default --------------------------------------------------------------------------------------------------------


def test_a_stub_on_the_relays_loopback_is_asked_for_the_enclave(own_lab: Ladder) -> None:
    before = run(own_lab, "cat /etc/resolv.conf").split()[1::2]
    config = own_lab.backend.relay_config()
    del config["dns"]
    write_resolv_conf(own_lab, "127.0.0.53")
    stub = own_lab.backend.spawn(Node.POD, [sys.executable, "-c", STUB, own_lab.topology.external4], name="stub")
    try:
        stub.wait_for_line("ready", own_lab.backend.deadline(10))
        own_lab.start_enclave()
        own_lab.start_relay(config)
        own_lab.wait_ready()
        report = own_lab.probe(Node.ENCLAVE, "resolve", f"www.{own_lab.topology.zone}")
        assert set(report["addresses"]) == {own_lab.topology.external4, own_lab.topology.external6}
        assert own_lab.enclave_status()["dns"]["servers"] == ["127.0.0.53"]
        write_resolv_conf(own_lab, own_lab.topology.external4)
        own_lab.backend.deadline(10).poll(
            lambda: own_lab.topology.external4 in run(own_lab, "cat /etc/resolv.conf", Node.ENCLAVE), "the server"
        )
        assert own_lab.enclave_status()["dns"] is None
    finally:
        stub.kill()
        write_resolv_conf(own_lab, *before)


# -- two enclaves ------------------------------------------------------------------------------------------------------


def test_each_enclave_asks_at_its_own_gateway_and_at_no_other(two_enclaves: Ladder) -> None:
    topology = two_enclaves.topology
    config = two_enclaves.backend.relay_config()
    config["dns"] |= {"forward": True}
    two_enclaves.start_enclave()
    for tenant in topology.neighbours:
        two_enclaves.start_neighbour(tenant.node)
    two_enclaves.start_relay(config)
    two_enclaves.wait_ready()
    one, other = topology.tenants
    for tenant, stranger in ((one, other), (other, one)):
        report = two_enclaves.probe(tenant.node, "resolve", f"www.{topology.zone}")
        assert topology.external4 in report["addresses"]
        listen = two_enclaves.enclave_status(tenant.node)["dns"]["listen"]
        assert listen == [tenant.relay4, tenant.relay6]
        told = dig(two_enclaves, tenant.node, f"@{stranger.relay4}", "+tries=1", "+time=1", "www.lab.test")
        assert not any("HEADER" in line for line in told)
