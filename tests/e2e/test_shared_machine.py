"""The relay shares its machine: whatever others do to it, it restores traffic or reports why it cannot.

In no case does a packet of the enclave, or one for it, pass an interface other than the tunnel's in clear: sentinels
watch every interface of the pod and of the node for the whole file.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from lab.backend import Process
from lab.filters import PacketFilter, asked_for
from lab.guest.command import alone
from lab.ladder import Ladder
from lab.topology import Node
from wgvsock.system.filter.probe import DESTINATIONS

pytestmark = pytest.mark.lab

TABLE = "wgvsock-relay"
FILTER = asked_for()
IPTABLES = {PacketFilter.LEGACY: "legacy"}.get(FILTER, "nft")

RIGHT_WITHIN = 2.0
"""Seconds."""

SLOW_LOOK = 20.0
"""Seconds between two checks of what the kernel does not report."""

NO_FIGHT = 3
"""Repairs of one kind. After five in 30 s the relay slows down, because another program undoes each."""

OBSTACLE = "WGV-E088"


class Sentinels:
    """One in the pod and one in the node."""

    def __init__(self, lab: Ladder) -> None:
        self._lab = lab
        topology = lab.topology
        argv = [*alone("sentinel"), topology.enclave4, topology.enclave6, "--besides", "wg0"]
        argv += ["--besides", "wg9"]  # what a test renames it to
        self._processes: dict[Node, Process] = {
            node: lab.backend.spawn(node, argv, name=f"sentinel-{node}") for node in (Node.POD, Node.NODE)
        }
        for process in self._processes.values():
            process.wait_for_line("ready", lab.backend.deadline(20))
        self._known = dict.fromkeys(self._processes, 0)
        self._asked = 0

    def leaks(self) -> list[str]:
        """Return what passed in clear since the last call."""
        self._asked += 1
        found = []
        for node, process in self._processes.items():
            process.signal(signal.SIGUSR1)
            answer = process.wait_for_line(f"looked {self._asked} ", self._lab.backend.deadline(10))
            assert answer.rstrip().endswith("lost 0"), answer
            # The relay's own question to the machine's rules is no packet of the enclave. It ends in the relay's table,
            # and passes where that goes in the same millisecond: an empty segment to an address of nobody's.
            lines = [
                line
                for line in process.output().splitlines()
                if line.startswith("leak") and not line.endswith(tuple(f"> {one}" for one in DESTINATIONS.values()))
            ]
            found += [f"{node}: {line}" for line in lines[self._known[node] :]]
            self._known[node] = len(lines)
        return found

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()


@pytest.fixture(scope="module")
def sentinels(network: Ladder) -> Iterator[Sentinels]:
    made = Sentinels(network)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def _nothing_leaks(sentinels: Sentinels) -> Iterator[None]:
    yield
    assert sentinels.leaks() == []


@pytest.fixture
def quiet(network: Ladder) -> Ladder:
    """The tunnel is up, and has not been repaired so often that one more disturbance looks like a contest."""
    network.raise_tunnel()
    if max(network.relay_status()["nat"]["repairs"].values(), default=0) > NO_FIGHT:
        network.clear()
        network.raise_tunnel()
    return network


def run(lab: Ladder, script: str, node: Node = Node.POD) -> str:
    """Run another program's script."""
    return lab.backend.run(node, ["sh", "-ec", script]).check().stdout.decode()


def passes(lab: Ladder, family: int) -> bool:
    """Return whether the enclave reaches the outside, and clients outside reach the application."""
    topology = lab.topology
    external = getattr(topology, f"external{family}")
    pod = getattr(topology, f"pod{family}")
    port = str(topology.application.echo_port)
    return all(
        lab.try_probe(node, "tcp", host, number, "--timeout", "0.4")["ok"]
        for node, host, number in ((Node.ENCLAVE, external, "7"), (Node.EXTERNAL, pod, port))
    )


def is_right_again(lab: Ladder, *families: int, within: float = RIGHT_WITHIN) -> None:
    lab.backend.deadline(within).poll(
        lambda: all(passes(lab, family) for family in families or (4, 6)), "traffic to pass again"
    )
    lab.wait_ready()


def says(lab: Ladder, code: str) -> dict[str, Any]:
    """Wait until the Relay is not ready for this reason, and return the reason."""

    def look() -> dict[str, Any] | None:
        status = lab.relay_status()
        problem: dict[str, Any] | None = status["nat"]["problem"]
        return problem if problem is not None and problem["code"] == code and not status["ready"] else None

    problem = lab.backend.deadline(SLOW_LOOK + RIGHT_WITHIN).poll(look, f"the Relay to say {code}")
    assert lab.relay_status()["conditions"]["uplink"] is False
    return problem


def repairs(lab: Ladder) -> int:
    return sum(lab.relay_status()["nat"]["repairs"].values())


def tables(command: str, *, kind: str = IPTABLES, families: str = "ip ip6") -> str:
    """Run a command for iptables and ip6tables. ``{t}`` is the program."""
    return "; ".join(command.replace("{t}", f"{v}tables-{kind} -w") for v in families.split())


def test_a_sentinel_sees_what_passes_in_clear(quiet: Ladder, sentinels: Sentinels) -> None:
    """Without this check, no statement here about leaks would be meaningful."""
    topology = quiet.topology
    quiet.send_frame(Node.POD, IP(src=topology.enclave4, dst=topology.external4) / UDP(sport=9, dport=9))
    quiet.send_frame(Node.NODE, IPv6(src=topology.external6, dst=topology.enclave6) / UDP(sport=9, dport=9))
    seen = "\n".join(sentinels.leaks())
    assert f"pod: leak eth0 {topology.enclave4} > {topology.external4}" in seen
    assert f"node: leak pod0 {topology.enclave4} > {topology.external4}" in seen
    assert f"pod: leak eth0 {topology.external6} > {topology.enclave6}" in seen


# -- what is changed is put right --------------------------------------------------------------------------------------

RULES = {
    PacketFilter.NFT: {
        "everything flushed": "nft flush ruleset",
        "our table deleted": f"nft delete table inet {TABLE}",
        "our forward chain emptied": f"nft flush chain inet {TABLE} forward",
        "our translation emptied": f"nft flush chain inet {TABLE} prerouting; nft flush chain inet {TABLE} postrouting",
        "a rule of ours deleted": (
            f"nft delete rule inet {TABLE} postrouting handle"
            f" $(nft -a list chain inet {TABLE} postrouting | sed -n 's/.*ip saddr.*handle //p')"
        ),
        "a rule before ours": f"nft insert rule inet {TABLE} forward counter drop",
        "Docker's restart": "echo 1 > /proc/sys/net/ipv4/ip_forward; nft flush ruleset; nft add table ip docker-like",
    },
    PacketFilter.IPTABLES: {
        # The relay may be quicker than the next command: a chain that is in use again cannot be deleted.
        "everything flushed": tables("for k in filter mangle nat; do {t} -t $k -F; {t} -t $k -X || true; done"),
        "our jumps deleted": tables(
            "{t} -D FORWARD -j WGVSOCK-relay-FWD; {t} -t nat -D PREROUTING -j WGVSOCK-relay-PRE || true"
        ),
        "our forward chain emptied": tables("{t} -F WGVSOCK-relay-FWD"),
        "our translation emptied": tables("{t} -t nat -F WGVSOCK-relay-PRE; {t} -t nat -F WGVSOCK-relay-POST"),
        "a rule of ours deleted": tables("{t} -t nat -D WGVSOCK-relay-POST 1"),
        "a rule before ours": tables("{t} -I WGVSOCK-relay-FWD -j DROP"),
        "a restore without ours": "; ".join(
            f"{v}tables-{IPTABLES}-save | grep -v WGVSOCK | {v}tables-{IPTABLES}-restore" for v in ("ip", "ip6")
        ),
    },
}
CHANGES = {
    "forwarding off": "cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 0 > ip_forward",  # 0 upon 0 changes nothing
    "forwarding of the uplink off": "echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding",
    "forwarding of the tunnel off": "echo 0 > /proc/sys/net/ipv4/conf/wg0/forwarding",
    "IPv6 forwarding off": "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    "addresses flushed": "ip address flush dev wg0",
    "one address gone": "ip address delete 10.73.0.1/24 dev wg0",
    "wg0 down": "ip link set wg0 down",
    "wg0 down and up": "ip link set wg0 down; ip link set wg0 up",
    "another MTU": "ip link set wg0 mtu 1280",
    "another group": "ip link set wg0 group 0",
    "routing policy flushed": "ip rule flush; ip rule add lookup main priority 32766; ip -6 rule delete priority 1",
}


def put_right(lab: Ladder, script: str, within: float) -> None:
    before = repairs(lab)
    run(lab, script)
    lab.backend.deadline(within).poll(lambda: repairs(lab) > before, "the relay to have repaired it")
    is_right_again(lab)


RULE_CHANGES = RULES[PacketFilter.NFT if FILTER is PacketFilter.NFT else PacketFilter.IPTABLES]


@pytest.mark.parametrize("script", RULE_CHANGES.values(), ids=RULE_CHANGES.keys())
def test_rules_that_are_changed_are_put_right(quiet: Ladder, script: str) -> None:
    put_right(quiet, script, RIGHT_WITHIN)


def no_pod(lab: Ladder, what: str) -> None:
    """Skip what a Relay in a container does not have."""
    if lab.backend.name == "container":
        pytest.skip(f"a pod has no {what}")


@pytest.mark.parametrize("script", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_changed_is_put_right(quiet: Ladder, script: str) -> None:
    if script == CHANGES["IPv6 forwarding off"]:
        no_pod(quiet, "/proc/sys that can be written")
    put_right(quiet, script, RIGHT_WITHIN)


FLOOD = """
import socket, sys, time
for number in range(1 << 16):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 20000 + number % 500))  # no more flows than a small machine's connection tracking has room for
        sock.sendto(b"new flow", (sys.argv[1], 9))
    if not number:
        print("sending", flush=True)
    time.sleep(0.001)
"""


@pytest.mark.skipif(FILTER is not PacketFilter.NFT, reason="tables of iptables go one by one: see docs/operations.md")
def test_not_one_packet_leaves_untranslated_while_the_rules_are_gone(quiet: Ladder) -> None:
    """The sentinels would see it: forwarding stays on, and new flows start all the time."""
    argv = [sys.executable, "-I", "-S", "-c", FLOOD, quiet.topology.external4]
    flood = quiet.backend.spawn(Node.ENCLAVE, argv, name="flood")
    try:
        flood.wait_for_line("sending", quiet.backend.deadline(20))
        put_right(quiet, RULE_CHANGES["everything flushed"], RIGHT_WITHIN + SLOW_LOOK)
    finally:
        flood.kill()


# -- neighbours that are harmless --------------------------------------------------------------------------------------

DOCKER = """
{t} -N DOCKER; {t} -N DOCKER-USER; {t} -N DOCKER-ISOLATION-STAGE-1; {t} -N DOCKER-ISOLATION-STAGE-2
{t} -A DOCKER-USER -j RETURN
{t} -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
{t} -A DOCKER-ISOLATION-STAGE-1 -j RETURN
{t} -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP; {t} -A DOCKER-ISOLATION-STAGE-2 -j RETURN
{t} -I FORWARD -o docker0 -j DOCKER; {t} -I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -I FORWARD -i docker0 ! -o docker0 -j ACCEPT; {t} -I FORWARD -j DOCKER-ISOLATION-STAGE-1
{t} -I FORWARD -j DOCKER-USER
{t} -t nat -N DOCKER; {t} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
{t} -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; {t} -t nat -A DOCKER -i docker0 -j RETURN
"""
KUBE_PROXY = """
{t} -N KUBE-FORWARD; {t} -N KUBE-SERVICES; {t} -N KUBE-FIREWALL
{t} -I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
{t} -I FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES; {t} -I INPUT -j KUBE-FIREWALL
{t} -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
{t} -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
{t} -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
{t} -t nat -N KUBE-SERVICES; {t} -t nat -N KUBE-POSTROUTING; {t} -t nat -N KUBE-MARK-MASQ
{t} -t nat -I PREROUTING -j KUBE-SERVICES; {t} -t nat -I POSTROUTING -j KUBE-POSTROUTING
{t} -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
{t} -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
{t} -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0; {t} -t nat -A KUBE-POSTROUTING -j MASQUERADE
{t} -t nat -A KUBE-SERVICES -d 172.20.0.1/32 -p tcp --dport 443 -j KUBE-MARK-MASQ
"""
VPC_CNI = """
{t} -t nat -N AWS-SNAT-CHAIN-0; {t} -t nat -A POSTROUTING -j AWS-SNAT-CHAIN-0
{t} -t nat -A AWS-SNAT-CHAIN-0 -d 10.20.0.0/16 -j RETURN
{t} -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.20.0.10 --random-fully
{t} -t mangle -A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
{t} -t mangle -A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
ip route add default via 10.20.0.1 dev eth0 table 101; ip rule add from 10.20.0.10 lookup 101 priority 1536
ip rule add fwmark 0x80/0x80 lookup main priority 1024
"""
NO_VPC_CNI = "ip rule delete priority 1536; ip rule delete priority 1024; ip route flush table 101"


@pytest.fixture
def own_rules(quiet: Ladder) -> Iterator[Ladder]:
    """Remove other programs' rules after the test, one table per step, so that the relay's are never missing."""
    programs = [f"{v}tables-{kind}" for v in ("ip", "ip6") for kind in sorted({"nft", IPTABLES})]
    if FILTER is PacketFilter.NFT:
        undo = "for v in ip ip6; do for k in filter mangle nat; do nft delete table $v $k || true; done; done"
    else:
        # A table that is not there yet is not saved, and is emptied later: then none of our rules is in it.
        saved = (
            '{p}-save > /run/{p}.saved; for t in filter mangle nat; do grep -q "^[*]$t" /run/{p}.saved'
            " || printf '*%s\\nCOMMIT\\n' $t >> /run/{p}.saved; done"
        )
        run(quiet, "; ".join(saved.replace("{p}", p) for p in programs))
        undo = "; ".join(f"{p}-restore < /run/{p}.saved" for p in programs)
    yield quiet
    run(quiet, undo)
    is_right_again(quiet, within=SLOW_LOOK + RIGHT_WITHIN)


@pytest.mark.parametrize(
    ("script", "undo"),
    [(DOCKER, "true"), (KUBE_PROXY, "true"), (VPC_CNI, NO_VPC_CNI)],
    ids=["Docker", "kube-proxy", "VPC CNI"],
)
def test_neighbours_rules_are_no_disturbance(own_rules: Ladder, script: str, undo: str) -> None:
    before = repairs(own_rules)
    run(own_rules, tables(script, families="ip"))
    try:
        is_right_again(own_rules)
        assert repairs(own_rules) == before
    finally:
        run(own_rules, undo)


def test_another_relay_s_rules_are_left_alone_and_leave_ours_alone(quiet: Ladder) -> None:
    if FILTER is not PacketFilter.NFT:
        chain = "{t} -N WGVSOCK-other-LAST; {t} -A FORWARD -j WGVSOCK-other-LAST; {t} -A WGVSOCK-other-LAST -j DROP"
        run(quiet, tables(chain))
        try:
            is_right_again(quiet)
            assert "wgvsock-other-last" in quiet.nat_rules()
        finally:
            run(quiet, tables("{t} -D FORWARD -j WGVSOCK-other-LAST; {t} -F WGVSOCK-other-LAST"))
            run(quiet, tables("{t} -X WGVSOCK-other-LAST"))
        return
    other = """
        table inet wgvsock-other {
            chain before { counter comment "before ipv4_forwarding eth0 0/0"; }
            chain forward {
                type filter hook forward priority filter; policy accept;
                meta nfproto ipv4 iifgroup != 51820 oifgroup != 51820 counter drop
            }
        }
    """
    run(quiet, f"nft -f - <<'END'\n{other}\nEND")
    try:
        is_right_again(quiet)
        assert "wgvsock-other" in quiet.nat_rules()
    finally:
        run(quiet, "nft delete table inet wgvsock-other")


# -- obstacles: not ours to take away, but to name ---------------------------------------------------------------------

FIREWALLD = """nft -f - <<'END'
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}
END"""
ISTIO = """
{t} -t nat -N ISTIO_INBOUND; {t} -t nat -N ISTIO_IN_REDIRECT
{t} -t nat -I PREROUTING -p tcp -j ISTIO_INBOUND
{t} -t nat -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN; {t} -t nat -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
{t} -t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
"""


def test_a_reject_of_firewalld_s_is_named(own_rules: Ladder) -> None:
    run(own_rules, FIREWALLD)
    try:
        problem = says(own_rules, OBSTACLE)
        assert "IPv4 and IPv6" in problem["what"]
    finally:
        run(own_rules, "nft delete table inet firewalld")


def test_a_forward_policy_that_drops_is_passed_or_named(own_rules: Ladder) -> None:
    """In iptables' own chains the relay's accept is final. A chain of nft is one more that a packet has to pass."""
    run(own_rules, tables("{t} -P FORWARD DROP"))
    if FILTER is PacketFilter.NFT:
        assert "ip filter FORWARD, ip6 filter FORWARD" in says(own_rules, OBSTACLE)["why"]
    else:
        is_right_again(own_rules)


def test_a_drop_in_front_of_ours_is_named(own_rules: Ladder) -> None:
    run(own_rules, tables("{t} -I FORWARD -i wg0 -j DROP", families="ip"))
    assert "IPv4 packets" in says(own_rules, OBSTACLE)["what"]


def test_a_sidecar_s_redirection_is_named(own_rules: Ladder) -> None:
    run(own_rules, tables(ISTIO, families="ip"))
    assert "IPv4 packets" in says(own_rules, OBSTACLE)["what"]


# -- routes, interfaces, families --------------------------------------------------------------------------------------


def default_routes(lab: Ladder) -> tuple[str, str]:
    four, six = run(lab, "ip route show default; echo; ip -6 route show default").strip().split("\n\n")
    return re.sub(r" (expires|pref) \S+", "", four.strip()), re.sub(r" (expires|pref) \S+", "", six.strip())


def test_a_default_route_that_is_gone_makes_the_relay_unready_and_back_ready(quiet: Ladder) -> None:
    four, six = default_routes(quiet)
    run(quiet, "ip route delete default; ip -6 route delete default")
    try:
        says(quiet, "WGV-E082")
    finally:
        run(quiet, f"ip route add {four}; ip -6 route add {six}")
    is_right_again(quiet)


def test_another_gateway_is_no_disturbance(quiet: Ladder) -> None:
    four, _ = default_routes(quiet)
    run(quiet, "ip address add 10.20.0.254/24 dev pod0", Node.NODE)
    try:
        run(quiet, "ip route replace default via 10.20.0.254")
        is_right_again(quiet)
    finally:
        run(quiet, f"ip route replace {four}")
        run(quiet, "ip address delete 10.20.0.254/24 dev pod0", Node.NODE)


SECOND = "v4if0"


@pytest.fixture
def second_uplink(network: Ladder) -> Iterator[Ladder]:
    """The pod's IPv4 is on a separate interface, as in an IPv6 pod of EKS: ``default dev v4if0``."""
    network.clear()
    done = network.backend.run(Node.POD, ["ip", "link", "add", SECOND, "link", "eth0", "type", "macvlan"])
    if done.exit_code:
        pytest.skip(f"the kernel of the pod has no macvlan: {done.stderr.decode().strip()}")
    four, _ = default_routes(network)
    own = f"{network.topology.pod4}/24"
    # Each interface answers for its own addresses alone, or the node would learn eth0's MAC for both.
    run(network, "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")
    run(network, f"ip address delete {own} dev eth0; ip address add {own} dev {SECOND}; ip link set {SECOND} up")
    run(network, f"ip route replace default via 10.20.0.1 dev {SECOND}")
    run(network, "ip neighbour flush dev pod0", Node.NODE)
    yield network
    network.clear()
    run(network, f"ip link delete {SECOND}; ip address add {own} dev eth0; ip route replace {four}")
    run(network, "echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore")
    run(network, "ip neighbour flush dev pod0", Node.NODE)


def test_each_family_has_its_own_uplink(second_uplink: Ladder) -> None:
    shown = run(second_uplink, "ip -6 -o address show dev pod0 scope link", Node.NODE)
    _, six = default_routes(second_uplink)
    gateway = shown.split("inet6 ")[1].split("/")[0]
    run(second_uplink, f"ip -6 route replace default via {gateway} dev eth0")
    try:
        second_uplink.raise_tunnel()
        is_right_again(second_uplink)
        assert second_uplink.relay_status()["nat"]["uplink"] == f"{SECOND}, eth0"
    finally:
        run(second_uplink, f"ip -6 route replace {six}")


def test_a_default_route_that_moves_is_followed(second_uplink: Ladder) -> None:
    own = f"{second_uplink.topology.pod4}/24"
    run(second_uplink, f"ip address delete {own} dev {SECOND}; ip address add {own} dev eth0")
    run(second_uplink, "ip route replace default via 10.20.0.1 dev eth0")
    run(second_uplink, "ip neighbour flush dev pod0", Node.NODE)
    second_uplink.raise_tunnel()
    run(second_uplink, f"ip address delete {own} dev eth0; ip address add {own} dev {SECOND}")
    run(second_uplink, f"ip route replace default via 10.20.0.1 dev {SECOND}")
    run(second_uplink, "ip neighbour flush dev pod0", Node.NODE)
    is_right_again(second_uplink)
    assert second_uplink.relay_status()["nat"]["repairs"]["uplink"] >= 1
    run(second_uplink, f"ip address delete {own} dev {SECOND}")


def test_a_renamed_interface_is_named_and_taken_back(quiet: Ladder) -> None:
    run(quiet, "ip link set wg0 down; ip link set wg0 name wg9; ip link set wg9 up")
    try:
        says(quiet, "WGV-E051")
    finally:
        run(quiet, "ip link set wg9 down; ip link set wg9 name wg0; ip link set wg0 up")
    is_right_again(quiet)


def test_a_deleted_interface_ends_the_relay_which_leaves_nothing(own_lab: Ladder) -> None:
    before = own_lab.state(Node.POD)
    own_lab.raise_tunnel()
    run(own_lab, "ip link delete wg0")
    assert own_lab.relay is not None
    assert own_lab.relay.wait(own_lab.backend.deadline(10)) != 0
    own_lab.relay = None
    after = own_lab.state(Node.POD)
    assert {name for name in before if before[name] != after[name]} == set()


def test_without_ipv6_the_addresses_of_the_pool_are_ipv4(own_lab: Ladder) -> None:
    no_pod(own_lab, "/proc/sys that can be written")
    config = own_lab.backend.relay_config()
    del config["enclave"]["addresses"], config["interface"]["addresses"]
    run(own_lab, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    try:
        own_lab.start_enclave()
        own_lab.start_relay(config)
        own_lab.wait_ready()
        own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7")
        assert "inet6" not in run(own_lab, "ip address show dev wg0", Node.ENCLAVE).replace("inet6 fe80", "")
    finally:
        run(own_lab, "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")


def test_ipv6_that_is_switched_off_is_named(own_lab: Ladder) -> None:
    own_lab.raise_tunnel()
    six = run(own_lab, "ip -6 route show default").strip()
    run(own_lab, "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    try:
        # The first look may only see that nothing passes.
        own_lab.backend.deadline(SLOW_LOOK + RIGHT_WITHIN).poll(
            lambda: "disable_ipv6" in ((own_lab.relay_status()["nat"]["problem"] or {}).get("why") or ""),
            "the relay to name the switch",
        )
        own_lab.backend.deadline(RIGHT_WITHIN).poll(lambda: passes(own_lab, 4), "IPv4 to pass, as before")
    finally:
        run(own_lab, "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        run(
            own_lab,
            f"ip address add {own_lab.topology.pod6}/64 dev eth0 nodad; ip -6 route replace {six.split(' proto')[0]}",
        )
    is_right_again(own_lab, within=SLOW_LOOK + RIGHT_WITHIN)


def test_a_prefix_that_the_pod_uses_is_refused_by_name(own_lab: Ladder) -> None:
    run(
        own_lab,
        "ip link add other0 type veth peer name other1; ip address add 10.73.0.9/16 dev other0; ip link set other0 up",
    )
    try:
        own_lab.start_relay()
        assert own_lab.relay is not None
        assert own_lab.relay.wait(own_lab.backend.deadline(10)) == 2
        assert "overlaps 10.73.0.0/16, the network of other0" in own_lab.relay.output()
    finally:
        own_lab.relay = None
        run(own_lab, "ip link delete other0")


# -- resolvers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_resolver(own_lab: Ladder) -> Iterator[Callable[[str], None]]:
    """The Relay forwards to its resolv.conf's servers. The function writes another one."""
    config = own_lab.backend.relay_config()
    del config["dns"]
    before = run(own_lab, "cat /etc/resolv.conf")

    def write(text: str) -> None:
        run(own_lab, f"printf '{text}' > /etc/resolv.conf")

    write("nameserver 198.51.100.10\\n")
    own_lab.start_enclave()
    own_lab.start_relay(config)
    own_lab.wait_ready()
    yield write
    write(before.replace("\n", "\\n"))


def in_the_enclave(lab: Ladder, line: str) -> None:
    def look() -> bool:
        return line in run(lab, "cat /etc/resolv.conf", Node.ENCLAVE).splitlines()

    lab.backend.deadline(RIGHT_WITHIN).poll(look, f"{line!r} in the enclave")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nameserver 198.51.100.10\\nnameserver 198.51.100.11\\n", "nameserver 198.51.100.11"),
        ("nameserver 127.0.0.53\\nnameserver 198.51.100.12\\n", "nameserver 198.51.100.12"),  # no stub of ours
        ("nameserver 10.73.0.77\\n", "nameserver 198.51.100.10"),  # refused: it lies in the tunnel's own prefix
        ("nameserver 198.51.100.10\\nsearch team_a.example.com\\n", "search team_a.example.com"),
        ("nameserver 198.51.100.10\\nsearch corp.example.com.\\n", "search corp.example.com"),
    ],
    ids=["another server", "loopback stub", "overlap", "underscore", "root's dot"],
)
def test_a_changed_resolv_conf_reaches_the_enclave(
    own_lab: Ladder, own_resolver: Callable[[str], None], text: str, line: str
) -> None:
    own_resolver(text)
    in_the_enclave(own_lab, line)
    is_right_again(own_lab)


def test_a_replaced_resolv_conf_reaches_the_enclave(own_lab: Ladder, own_resolver: Callable[[str], None]) -> None:
    del own_resolver
    no_pod(own_lab, "resolv.conf that is replaced: it is a mount")
    run(own_lab, "echo nameserver 198.51.100.13 > /etc/resolv.new; mv /etc/resolv.new /etc/resolv.conf")
    in_the_enclave(own_lab, "nameserver 198.51.100.13")


# -- a relay that comes, goes and dies ---------------------------------------------------------------------------------


@pytest.fixture
def router(own_lab: Ladder) -> Iterator[Ladder]:
    """The pod's namespace already forwards, as on every Kubernetes node, and continues to."""
    before = run(own_lab, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding").split()
    switch = "echo {} > /proc/sys/net/ipv4/ip_forward; echo {} > /proc/sys/net/ipv6/conf/all/forwarding"
    run(own_lab, switch.format(1, 1))
    yield own_lab
    if own_lab.relay is None:
        own_lab.start_relay()
        own_lab.backend.deadline(20).poll(lambda: own_lab.backend.status(Node.POD), "the Relay to recover")
    own_lab.stop_relay()
    run(own_lab, switch.format(*before))


def knock(lab: Ladder) -> None:
    """Clients of published ports, and a program of the pod that sends to the enclave."""
    for family in (4, 6):
        enclave, pod = (getattr(lab.topology, f"{name}{family}") for name in ("enclave", "pod"))
        port = str(lab.topology.application.echo_port)
        for protocol in ("tcp", "udp"):
            lab.try_probe(Node.EXTERNAL, protocol, pod, port, "--timeout", "0.5")
        lab.try_probe(Node.POD, "udp", enclave, port, "--timeout", "0.5")


def test_a_killed_relay_leaves_nothing_that_carries_the_enclave_s_packets_elsewhere(
    router: Ladder, sentinels: Sentinels
) -> None:
    """Rules and flows stay while wg0 is gone, and the default route leads out."""
    router.raise_tunnel()
    assert router.relay is not None
    router.relay.kill()
    router.relay = None
    knock(router)
    assert sentinels.leaks() == []


def test_nor_does_a_relay_that_restarts(router: Ladder, sentinels: Sentinels) -> None:
    router.raise_tunnel()
    router.stop_relay(signal.SIGUSR2)
    knock(router)
    assert sentinels.leaks() == []
    router.start_relay()
    router.wait_ready()
    is_right_again(router)


def test_a_restart_in_the_middle_of_a_change_leaves_no_open_way(own_lab: Ladder) -> None:
    """SIGUSR2 while nft or iptables runs: its result is unknown, so forwarding is closed first."""
    own_lab.raise_tunnel()
    assert own_lab.relay is not None
    own_lab.relay.signal(signal.SIGUSR1)
    run(own_lab, RULE_CHANGES["our forward chain emptied"])
    own_lab.stop_relay(signal.SIGUSR2)
    assert "wgvsock-relay" in own_lab.nat_rules()
    assert not own_lab.translates()
    own_lab.start_relay()
    own_lab.wait_ready()
    is_right_again(own_lab)


def test_a_container_that_restarts_with_an_empty_run_knows_what_was_before(own_lab: Ladder) -> None:
    before = own_lab.state(Node.POD)
    own_lab.raise_tunnel()
    assert own_lab.relay is not None
    own_lab.relay.kill()
    run(own_lab, "rm -f /run/wgvsock/*.json")
    own_lab.start_relay()
    own_lab.wait_ready()
    # Packets of others are still not forwarded.
    last = "iifgroup != 51820" if FILTER is PacketFilter.NFT else "-a wgvsock-relay-last -j drop"
    assert last in own_lab.nat_rules()
    own_lab.stop_relay(signal.SIGTERM)
    after = own_lab.state(Node.POD)
    assert {name for name in before if before[name] != after[name]} == set()


def test_a_relay_that_was_there_before_docker_leaves_it_its_forwarding(own_lab: Ladder) -> None:
    run(own_lab, "echo 0 > /proc/sys/net/ipv4/conf/all/forwarding")
    own_lab.raise_tunnel()
    run(own_lab, "echo 1 > /proc/sys/net/ipv4/ip_forward")
    is_right_again(own_lab)
    own_lab.stop_relay()
    try:
        assert run(own_lab, "cat /proc/sys/net/ipv4/conf/eth0/forwarding").strip() == "1"
    finally:
        run(own_lab, "echo 0 > /proc/sys/net/ipv4/ip_forward")


# -- what the machine cannot do ----------------------------------------------------------------------------------------


def started_by(lab: Ladder, script: str) -> Process:
    """A Relay that a script starts with ``$relay``. Its configuration is the laboratory's."""
    no_pod(lab, "shell around the Relay")
    lab.start_relay()  # which writes its configuration down, and furnishes its PATH
    lab.backend.deadline(20).poll(lambda: lab.backend.status(Node.POD), "the Relay to answer")
    lab.stop_relay()
    backend = lab.backend
    (command,) = backend.translate(Node.POD, [str(Path(sys.executable).with_name("wgvsock"))])
    folder = "/lab" if command == "wgvsock" else str(backend.directory)
    prefix = f'relay="$(command -v {command}) relay run --config {folder}/relay.toml"; filter={folder}/filter\n'
    return backend.spawn(Node.POD, backend.with_filter(["sh", "-ec", prefix + script]), name="relay")


WITHOUT_FIB = """mkdir -p /run/no-fib
real=$(command -v nft)
cat > /run/no-fib/nft <<'END'
#!/bin/sh
rules=$(cat)
case "$rules" in *" fib "*) echo "Error: Could not process rule: No such file or directory" >&2; exit 1; esac
printf "%s\\n" "$rules" | REAL "$@"
END
sed -i "s|REAL|$real|" /run/no-fib/nft
chmod 755 /run/no-fib/nft
PATH=/run/no-fib:$PATH exec $relay
"""


def test_an_nft_without_fib_is_no_nft(own_lab: Ladder) -> None:
    """A kernel with nf_tables and without nft_fib: a list of tables would suggest that all is well."""
    if FILTER is not PacketFilter.NFT:
        pytest.skip("the relay of this run has no nft")
    own_lab.relay = started_by(own_lab, WITHOUT_FIB)
    own_lab.start_enclave()
    own_lab.wait_ready()
    is_right_again(own_lab)
    assert own_lab.relay_status()["nat"]["backend"] == "iptables"


def test_a_family_without_its_tool_is_named(own_lab: Ladder) -> None:
    if FILTER is PacketFilter.NFT:
        pytest.skip("nft has both families in one tool")
    process = started_by(own_lab, "rm -f $filter/ip6tables*; PATH=$filter exec $relay")
    assert process.wait(own_lab.backend.deadline(10)) == 7
    assert "ip6tables-restore is not installed" in process.output()


def test_where_proc_sys_cannot_be_written_ipv4_goes_on(own_lab: Ladder) -> None:
    # In two steps, as BusyBox's mount does not take the second one by itself.
    script = "mount -o bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec $relay"
    own_lab.relay = started_by(own_lab, script)
    own_lab.start_enclave()
    try:
        own_lab.wait_ready()
        own_lab.probe(Node.ENCLAVE, "tcp", own_lab.topology.external4, "7")
        assert "net.ipv6.conf.all.forwarding" in own_lab.relay_status()["nat"]["unset_sysctls"]
        output = own_lab.relay.output()
        own_lab.stop_relay()
    finally:
        run(own_lab, "umount /proc/sys || true")  # a guest has one mount namespace for all
    assert "the relay is IPv4-only" in output
    assert "code=WGV-E051" in output
