"""The user-space uplink: a Relay without interface, packet filter or privileges, and an engine that may be killed.

docs/userspace.md lists the differences from the kernel's uplink, with the test of each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
from scapy.layers.inet import TCP, UDP

from lab.ladder import PROBE, Ladder
from lab.netns.backend import NetnsBackend
from lab.topology import Node, Point
from lab.watch.dissect import ip_layers
from tests.e2e import holder
from wgvsock.uplink.errors import EngineMissingError
from wgvsock.uplink.libslirp import load

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

AGAIN_WITHIN = 3.0
"""Seconds from the engine's death to a working new connection: it is back within one, and a probe takes its time."""

HELD = 2000
CROWD_PORT = 7100
NEW_A_SECOND = 500
SECONDS = 5
UNDER_WAY = NEW_A_SECOND
PER_CONNECTION = 263 << 10
"""How much the engine may grow while connections come and go: enough for those open at one moment.

That is a second's worth on a busy machine. If each of the 2,500 between the two checks left its memory, it would be
five times that.
"""


def config_of(lab: Ladder, **tables: dict[str, Any]) -> dict[str, Any]:
    config = lab.backend.relay_config()
    return config | {"uplink": {**config.get("uplink", {}), "mode": "userspace"}} | tables


@pytest.fixture(scope="module", autouse=True)
def _libslirp() -> None:
    try:
        load()
    except EngineMissingError as error:
        pytest.skip(f"{error}: {error.fix}")


@pytest.fixture(scope="module")
def userspace(network: Ladder) -> Iterator[Ladder]:
    """A tunnel whose Relay has no interface."""
    network.clear()
    _raise(network)
    yield network
    network.clear()


def _raise(lab: Ladder, **tables: dict[str, Any]) -> None:
    lab.start_enclave()
    lab.start_relay(config_of(lab, **tables))
    lab.wait_ready()
    lab.wait_application()


def engine(lab: Ladder) -> dict[str, Any]:
    """Return what the Relay reports about its engine."""
    found: dict[str, Any] = lab.enclave_status()["nat"]["engine"]
    return found


def engines(lab: Ladder) -> list[int]:
    """The engines' processes in the pod."""
    script = 'for pid; do tr "\\0" " " < /proc/$pid/cmdline | grep -q wgvsock.uplink && echo $pid; done; true'
    pids = map(str, lab.backend.processes_in(Node.POD))
    found = lab.backend.run(Node.POD, ["sh", "-c", script, "sh", *pids]).check()
    return [int(pid) for pid in found.stdout.split()]


@FAMILIES
def test_tcp_with_half_close_udp_and_ping_reach_the_world(userspace: Ladder, family: int) -> None:
    host = str(getattr(userspace.topology, f"external{family}"))
    service = userspace.topology.service(Node.EXTERNAL)
    userspace.probe(Node.ENCLAVE, "tcp", host, str(service.echo_port), "--bytes", "300000")
    userspace.probe(Node.ENCLAVE, "udp", host, str(service.echo_port), "--bytes", "1200")
    userspace.probe(Node.ENCLAVE, "ping", host)


@FAMILIES
def test_the_world_sees_the_pod(userspace: Ladder, family: int) -> None:
    host = str(getattr(userspace.topology, f"external{family}"))
    port = str(userspace.topology.service(Node.EXTERNAL).http_port)
    report = userspace.probe(Node.ENCLAVE, "http", host, port, "/whoami")
    assert str(getattr(userspace.topology, f"pod{family}")) in report["body"]


@FAMILIES
def test_the_application_sees_who_calls(userspace: Ladder, family: int) -> None:
    host = str(getattr(userspace.topology, f"pod{family}"))
    application = userspace.topology.application
    report = userspace.probe(Node.EXTERNAL, "http", host, str(application.http_port), "/whoami")
    assert str(getattr(userspace.topology, f"external{family}")) in report["body"]
    userspace.probe(Node.EXTERNAL, "udp", host, str(application.echo_port), "--bytes", "1200")
    userspace.probe(Node.EXTERNAL, "tcp", host, str(application.echo_port), "--bytes", "300000")


@FAMILIES
def test_a_refused_connection_is_refused_at_once(userspace: Ladder, family: int) -> None:
    host = str(getattr(userspace.topology, f"external{family}"))
    report = userspace.try_probe(Node.ENCLAVE, "tcp", host, "9")
    assert "refused" in report["error"].lower()


COMPLAINT = """
import json, socket, sys
host, port, hops = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
four = ":" not in host
level, recverr, ttl = (0, 11, socket.IP_TTL) if four else (socket.IPPROTO_IPV6, 25, socket.IPV6_UNICAST_HOPS)
family = socket.AF_INET if four else socket.AF_INET6
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(level, recverr, 1)
    sock.setsockopt(level, ttl, hops)
    sock.settimeout(10)
    sock.connect((host, port))
    sock.send(b"anybody?")
    try:
        sock.recv(1)
    except OSError:
        pass
    _, ((_, _, data),), *_ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    router = socket.inet_ntop(family, data[20:24] if four else data[24:40])
    print(json.dumps([data[5], data[6], router]))
"""
"""Type, code and sender of the ICMP message about a datagram."""

NOBODY_LISTENS = {4: (3, 3), 6: (1, 4)}
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}


def complaint(lab: Ladder, host: str, port: int, hops: int = 64) -> tuple[tuple[int, int], str]:
    argv = [sys.executable, "-I", "-S", "-c", COMPLAINT, host, str(port), str(hops)]
    type_, code, router = json.loads(lab.backend.run(Node.ENCLAVE, argv).check().stdout)
    return (type_, code), router


@FAMILIES
def test_a_datagram_that_nobody_takes_is_told_by_whom_it_was_sent_to(userspace: Ladder, family: int) -> None:
    host = str(getattr(userspace.topology, f"external{family}"))
    assert complaint(userspace, host, 9) == (NOBODY_LISTENS[family], host)


@FAMILIES
@pytest.mark.parametrize("hops", [1, 2], ids=["relay", "node"])
def test_routers_on_the_way_are_seen_as_traceroute_looks_for_them(userspace: Ladder, family: int, hops: int) -> None:
    host = str(getattr(userspace.topology, f"external{family}"))
    relay = str(getattr(userspace.topology, f"relay{family}"))
    router = relay if hops == 1 else {4: "10.20.0.1", 6: "fd20::1"}[family]
    assert complaint(userspace, host, 9, hops) == (TIME_EXCEEDED[family], router)


HEADERS = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 200)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x28)
        sock.settimeout(10)
        sock.connect((host, port))
        sock.send(b"hello")
        sock.recv(5)
"""


def test_ttl_tos_and_tcp_options_are_those_of_the_relays_sockets(userspace: Ladder) -> None:
    """Except for the TTL of datagrams, which is the enclave's minus one hop."""
    host, port = userspace.topology.external4, userspace.topology.service(Node.EXTERNAL).echo_port
    argv = [sys.executable, "-I", "-S", "-c", HEADERS, host, str(port)]
    with userspace.observe(Point.ENCLAVE_WG0, Point.RELAY_ETH0) as observation:
        userspace.backend.run(Node.ENCLAVE, argv).check()
        inside, outside = (
            [packet for each in observation.packets(point) if (packet := ip_layers(each)) is not None]
            for point in (Point.ENCLAVE_WG0, Point.RELAY_ETH0)
        )

    def headers(packets: list[Any], layer: Any) -> Any:
        return next(packet for packet in packets if layer in packet and packet.dst == host)

    ours, theirs = headers(inside, TCP), headers(outside, TCP)
    assert (ours.ttl, ours.tos, theirs.ttl, theirs.tos) == (200, 0x28, 64, 0)
    assert (dict(ours[TCP].options)["MSS"] > 1460, dict(theirs[TCP].options)["MSS"]) == (True, 1460)
    ours, theirs = headers(inside, UDP), headers(outside, UDP)
    assert (ours.ttl, ours.tos, theirs.ttl, theirs.tos) == (200, 0x28, 199, 0)


def test_a_ping_that_nobody_answers_is_not_answered(userspace: Ladder) -> None:
    assert userspace.has_no_answer(Node.ENCLAVE, "ping", "198.51.100.77")


def test_this_machine_is_as_it_was(userspace: Ladder) -> None:
    links = userspace.backend.run(Node.POD, ["ip", "-o", "link"]).check().stdout.decode()
    assert "wg0" not in links
    assert "wgvsock" not in userspace.nat_rules()  # others may have left empty chains
    assert userspace.enclave_status()["nat"]["backend"] == "userspace"


def test_packets_come_with_their_checksums(userspace: Ladder) -> None:
    assert "profile/plain" in userspace.enclave_status()["attestation"]["capabilities"]


def test_the_engine_has_no_right_and_cannot_get_one(userspace: Ladder) -> None:
    (pid,) = engines(userspace)
    status = userspace.backend.run(Node.POD, ["cat", f"/proc/{pid}/status"]).check().stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name].strip("0 ") for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {""}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert engine(userspace)["sandbox_missing"] == []


def test_programs_on_the_relays_loopback_are_out_of_reach(userspace: Ladder) -> None:
    code = "import socket,time; s=socket.create_server(('127.0.0.1',8099)); print('ready',flush=True); time.sleep(60)"
    listener = userspace.backend.spawn(Node.POD, ["python3", "-c", code], name="loopback")
    try:
        listener.wait_for_line("ready", userspace.backend.deadline(10))
        for host in (userspace.topology.relay4, userspace.topology.relay6):
            assert "refused" in userspace.try_probe(Node.ENCLAVE, "tcp", host, "8099")["error"].lower()
    finally:
        listener.kill()


def test_an_engine_that_is_killed_under_load_costs_connections_and_nothing_else(userspace: Ladder) -> None:
    host, service = userspace.topology.external4, userspace.topology.service(Node.EXTERNAL)
    before = userspace.enclave_status()
    script = holder.script(host, service.echo_port, held=20, rate=100, seconds=4)
    load = userspace.backend.spawn(Node.ENCLAVE, ["python3", "-c", script], name="load")
    try:
        load.wait_for_line("held", userspace.backend.deadline(20))
        (pid,) = engines(userspace)
        userspace.backend.run(Node.POD, ["kill", "-KILL", str(pid)]).check()

        def works() -> bool:
            return bool(
                userspace.try_probe(Node.ENCLAVE, "tcp", host, str(service.echo_port), "--timeout", "0.5")["ok"]
            )

        userspace.backend.deadline(AGAIN_WITHIN).poll(works, "a new connection")
    finally:
        load.kill()
    after = userspace.enclave_status()
    assert engine(userspace)["restarts"] == before["nat"]["engine"]["restarts"] + 1
    assert after["attestation"]["timestamp"] == before["attestation"]["timestamp"]
    assert after["provisioning"]["attempts"] == before["provisioning"]["attempts"]
    assert after["ready"]


def test_connections_are_held_while_others_come_and_go_and_memory_stays(userspace: Ladder) -> None:
    server = userspace.backend.spawn(Node.EXTERNAL, ["python3", "-c", holder.server(CROWD_PORT)], name="crowd")
    server.wait_for_line("ready", userspace.backend.deadline(20))
    held, rate = (HELD, NEW_A_SECOND) if userspace.backend.scale < 3 else (HELD // 20, NEW_A_SECOND // 50)  # emulated
    held = min(held, engine(userspace)["max_connections"] - UNDER_WAY)  # a pod has the manifest's bounds
    script = holder.script(userspace.topology.external4, CROWD_PORT, held=held, rate=rate, seconds=2 * SECONDS)
    load = userspace.backend.spawn(Node.ENCLAVE, ["python3", "-c", script], name="load")
    try:
        load.wait_for_line("held", userspace.backend.deadline(60))
        load.wait_for_line("half", userspace.backend.deadline(60))
        middle = engine(userspace)
        assert load.wait(userspace.backend.deadline(60)) == 0, load.output()[-2000:]
        end = engine(userspace)
    finally:
        load.kill()
        server.kill()
    report = json.loads(load.output().splitlines()[-1])
    assert (report["alive"], report["failed"]) == (held, 0), f"{report} {middle} {end}"
    assert middle["connections"] >= held
    assert end["resident"] - middle["resident"] < UNDER_WAY * PER_CONNECTION, f"{middle} {end}"


def test_names_are_looked_up_by_the_relay_and_the_policy_holds(own_lab: Ladder) -> None:
    egress = {"default": "deny", "allow": [{"name": f"www.{own_lab.topology.zone}", "protocol": "any"}]}
    dns = {"servers": [own_lab.topology.external4], "forward": True}
    own_lab.start_enclave()
    own_lab.start_relay(config_of(own_lab, egress=egress, dns=dns))
    own_lab.wait_ready()
    host, port = own_lab.topology.external4, str(own_lab.topology.service(Node.EXTERNAL).echo_port)
    assert "refused" in own_lab.try_probe(Node.ENCLAVE, "tcp", host, port)["error"].lower()
    report = own_lab.probe(Node.ENCLAVE, "resolve", f"www.{own_lab.topology.zone}")
    assert host in json.dumps(report)
    own_lab.probe(Node.ENCLAVE, "tcp", host, port)
    assert not own_lab.try_probe(Node.ENCLAVE, "resolve", f"other.{own_lab.topology.zone}")["ok"]
    status = own_lab.enclave_status()
    assert status["egress"]["names_refused"] >= 1
    assert status["dns"]["queries"]["answered"] >= 1


ASK = """
import re, socket, sys
listening = open("/proc/net/udp").read()
ports = [int(found, 16) for found in re.findall(r": 0100007F:([0-9A-F]{4}) 00000000:0000 07", listening)]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.connect(("127.0.0.1", *ports))
    sock.send(bytes.fromhex(sys.argv[1]))
    print(sock.recv(4096).hex())
"""


def test_other_programs_of_the_pod_learn_from_the_forwarder_what_the_enclave_may(own_lab: Ladder) -> None:
    """It listens on the Pod's loopback, which the Pod's containers share."""
    allowed, other = f"www.{own_lab.topology.zone}", f"other.{own_lab.topology.zone}"
    egress = {"default": "deny", "allow": [{"name": allowed, "protocol": "any"}]}
    own_lab.start_enclave()
    own_lab.start_relay(
        config_of(own_lab, egress=egress, dns={"servers": [own_lab.topology.external4], "forward": True})
    )
    own_lab.wait_ready()

    def ask(name: str) -> dns.message.Message:
        wire = dns.message.make_query(name, "A").to_wire().hex()
        answer = own_lab.backend.run(Node.POD, ["python3", "-I", "-c", ASK, wire]).check().stdout
        return dns.message.from_wire(bytes.fromhex(answer.decode()))

    assert own_lab.topology.external4 in str(ask(allowed).answer)
    assert ask(other).rcode() == dns.rcode.REFUSED
    status = own_lab.enclave_status()
    assert (status["dns"]["queries"]["answered"], status["egress"]["names_refused"]) == (1, 1)


def test_there_is_no_socket_before_attestation_and_none_after_trust(own_lab: Ladder) -> None:
    own_lab.backend.nsm.set_faults(corrupt_signature=True)
    own_lab.start_enclave()
    own_lab.start_relay(config_of(own_lab))
    own_lab.backend.deadline(20).poll(
        lambda: (own_lab.backend.status(Node.POD) or {}).get("provisioning", {}).get("error"), "a refusal"
    )
    port = str(own_lab.topology.application.echo_port)
    assert engines(own_lab) == []
    assert not own_lab.try_probe(Node.EXTERNAL, "tcp", own_lab.topology.pod4, port, "--timeout", "2")["ok"]
    own_lab.backend.nsm.reset()
    own_lab.wait_ready(own_lab.backend.deadline(40))
    own_lab.wait_application()
    assert len(engines(own_lab)) == 1

    own_lab.backend.nsm.set_faults(pcrs={0: bytes([1]) * 48})
    own_lab.attest_again()
    own_lab.backend.deadline(20).poll(lambda: not engines(own_lab), "the engine to be gone")
    assert not own_lab.try_probe(Node.EXTERNAL, "tcp", own_lab.topology.pod4, port, "--timeout", "2")["ok"]
    assert own_lab.backend.run(Node.POD, ["ss", "-Htuln", "sport", "=", f":{port}"]).stdout == b""


def test_connections_end_with_the_relay_and_new_ones_work(own_lab: Ladder) -> None:
    _raise(own_lab)
    host, port = own_lab.topology.external4, str(own_lab.topology.service(Node.EXTERNAL).echo_port)
    # An emulated engine may not tell the enclave in time. Then the new one does, when the enclave sends again.
    argv = [*PROBE, "--scale", f"{own_lab.backend.scale:g}", "stream", host, port]
    stream = own_lab.backend.spawn(Node.ENCLAVE, [*argv, "--timeout", "30"], name="stream", stdin=True)
    try:
        stream.wait_for_line("alive", own_lab.backend.deadline(20))
        own_lab.stop_relay()
        own_lab.start_relay(config_of(own_lab))
        own_lab.wait_ready()
        assert stream.wait(own_lab.backend.deadline(30)) != 0
        assert "reset" in stream.output()
    finally:
        stream.kill()
    own_lab.probe(Node.ENCLAVE, "tcp", host, port)


NOBODY = 65532
WITHOUT_RIGHTS = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all"),
)


def test_a_relay_of_another_user_without_any_capability_serves(own_lab: Ladder) -> None:
    """As in a Pod that passes Pod Security `restricted`, except for the read-only root. test_container.py has a Pod."""
    backend = own_lab.backend
    if type(backend) is not NetnsBackend:
        pytest.skip(f"LAB={backend.name}: the checkout and the files of `netns` are not in the Relay's machine")
    program = str(Path(sys.executable).with_name("wgvsock"))
    if backend.run(Node.POD, [*WITHOUT_RIGHTS, program, "version"]).exit_code != 0:
        pytest.skip(f"missing: a checkout that user {NOBODY} can read; {program} is not")
    run, sockets = backend.directory / Node.POD / "run/wgvsock", backend.directory / "relay-side"
    modes = {path: path.stat().st_mode for path in (backend.directory, sockets)}
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(mode=0o700, parents=True)
    os.chown(run, NOBODY, NOBODY)
    for path in modes:
        path.chmod(0o777)
    try:
        own_lab.start_enclave()
        config = backend.write_config(Node.POD, config_of(own_lab))
        argv = [*WITHOUT_RIGHTS, program, "relay", "run", "--config", config]
        own_lab.relay = backend.spawn(Node.POD, argv, name="relay")
        own_lab.wait_ready()
        own_lab.wait_application()
        for pid in (own_lab.relay.pid, *engines(own_lab)):
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert fields["Uid"].split() == [str(NOBODY)] * 4
            assert {fields[name].strip("0") for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {""}
        for family in (4, 6):
            host = str(getattr(own_lab.topology, f"external{family}"))
            own_lab.probe(Node.ENCLAVE, "tcp", host, str(own_lab.topology.service(Node.EXTERNAL).echo_port))
    finally:
        own_lab.clear()
        shutil.rmtree(run, ignore_errors=True)
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)
