"""Connection tracking follows the rules: a client that sent too early is served, one of a withdrawn port is not."""

from __future__ import annotations

import copy
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.backend import Process
from lab.ladder import PROBE, Ladder
from lab.netns.backend import NetnsBackend
from lab.topology import Node

pytestmark = pytest.mark.lab

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])

AT_ONCE = 1.0
"""Seconds after readiness within which an early client is served."""

CLIENT = """
import select, socket, sys, time
family, *_, address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.connect(address)
sends = True
while True:
    try:
        if sends:
            sock.send(b"still here")
        if select.select([sock], [], [], 0.02)[0]:
            sock.recv(2048)
            print("answer", flush=True)
            sends = sys.argv[3] == "always"
        else:
            print("nothing", flush=True)
    except ConnectionError:  # the pod's own kernel says so, now and then: its errors are limited
        print("nothing", flush=True)
    time.sleep(0.01)
"""
"""A client that sends continuously from one port, or until it has been answered once."""

TALKER_PORT = 4000

TALKER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", int(sys.argv[1])))
_, client = sock.recvfrom(2048)
while True:
    try:
        sock.sendto(b"news", client)
    except OSError:
        pass  # the way is closed for a moment
    time.sleep(0.01)
"""
"""An application that keeps sending to the first client that it heard from."""

FLOWS = """
import socket, struct, sys
from wgvsock.system.conntrack import parse_flow
from wgvsock.system.rawnetlink import RawNetlink
with RawNetlink(12) as channel:
    for body in channel.dump(0x101, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)):
        if flow := parse_flow(body):
            name = flow.protocol, flow.source, flow.destination, flow.destination_port, flow.reply_source
            print(*name, flow.identity.hex())
"""
"""Returns the pod's flows."""


class Client:
    """What a client saw."""

    def __init__(self, lab: Ladder, process: Process) -> None:
        self._lab = lab
        self._process = process

    def saw(self, what: str) -> int:
        return self._process.output().count(what)

    def is_left_alone(self, seconds: float) -> None:
        """A busy machine's answer may be late: ten misses in a row count as an end."""
        self._lab.backend.deadline(seconds).poll(
            lambda: self._process.output().split()[-10:] == ["nothing"] * 10, "the client to see nothing"
        )

    def sees(self, what: str, seconds: float = 10) -> None:
        before = self.saw(what)
        self._lab.backend.deadline(seconds).poll(lambda: self.saw(what) > before, f'the client to see "{what}"')


@contextmanager
def client(lab: Ladder, family: int, port: int, sends: str = "always") -> Iterator[Client]:
    argv = [sys.executable, "-c", CLIENT, getattr(lab.topology, f"pod{family}"), str(port), sends]
    process = lab.backend.spawn(Node.EXTERNAL, argv, name=f"client-{family}-{port}")
    try:
        yield Client(lab, process)
    finally:
        process.kill()


def flows(lab: Ladder) -> list[str]:
    done = lab.backend.run(Node.POD, [sys.executable, "-c", FLOWS]).check()
    return done.stdout.decode().splitlines()


def without_ports(lab: Ladder) -> dict[str, Any]:
    config = copy.deepcopy(lab.backend.relay_config())
    config["nat"]["publish"] = []
    return config


def change_ports(lab: Ladder, how: str, config: dict[str, Any]) -> None:
    """Change a running relay's ports: by a reload, or by a restart that keeps flows."""
    if how == "restart":
        lab.restart_relay(config)
        lab.wait_ready()
        return
    backend = lab.backend
    if type(backend) is not NetnsBackend:  # a container is a kind of it
        pytest.skip("only network namespaces let the configuration of a running relay be written")
    assert isinstance(backend, NetnsBackend)
    assert lab.relay is not None
    wanted = len(config["nat"]["publish"]) > 0
    backend.write_config(Node.POD, config)
    lab.relay.signal(signal.SIGHUP)
    backend.deadline(10).poll(
        lambda: bool(lab.relay_status()["nat"]["published"]) is wanted, "the relay to take the configuration"
    )


HOW = pytest.mark.parametrize("how", ["restart", "reload"])


@FAMILIES
@HOW
def test_a_client_that_sent_before_its_port_was_published_is_served(own_lab: Ladder, family: int, how: str) -> None:
    own_lab.start_enclave()
    own_lab.start_relay(without_ports(own_lab))
    own_lab.wait_ready()
    with client(own_lab, family, own_lab.topology.application.echo_port) as early:
        early.sees("nothing")
        assert early.saw("answer") == 0
        change_ports(own_lab, how, own_lab.backend.relay_config())
        early.sees("answer", AT_ONCE)


@FAMILIES
@HOW
def test_a_port_that_is_withdrawn_answers_nobody(own_lab: Ladder, family: int, how: str) -> None:
    port = own_lab.topology.application.echo_port
    own_lab.raise_tunnel()
    host = getattr(own_lab.topology, f"pod{family}")
    argv = [*PROBE, "stream", host, str(port), "--timeout", "5"]
    connection = own_lab.backend.spawn(Node.EXTERNAL, argv, name="stream", stdin=True)
    try:
        connection.wait_for_line("alive", own_lab.backend.deadline(10))
        with client(own_lab, family, port) as served:
            served.sees("answer")
            change_ports(own_lab, how, without_ports(own_lab))
            served.is_left_alone(AT_ONCE)
            answers = served.saw("answer")
            for _ in range(10):
                served.sees("nothing")
            assert served.saw("answer") == answers
            enclave = getattr(own_lab.topology, f"enclave{family}")
            client_host = getattr(own_lab.topology, f"external{family}")
            led = [flow for flow in flows(own_lab) if f" {client_host} " in flow and flow.split()[4] == enclave]
            assert led == []
        assert connection.wait(own_lab.backend.deadline(10)) != 0
    finally:
        connection.kill()


@FAMILIES
def test_an_enclave_that_talks_on_does_not_open_a_withdrawn_port_again(own_lab: Ladder, family: int) -> None:
    """From the port, to a former client that only listens.

    With the port kept, that would be a new flow in which the client hears the port's answers, and whose replies are the
    client's next packets.
    """
    config = own_lab.backend.relay_config()
    config["nat"]["publish"] = [*config["nat"]["publish"], {"protocol": "udp", "port": TALKER_PORT}]
    own_lab.start_enclave()
    own_lab.start_relay(config)
    own_lab.wait_ready()
    talker = own_lab.backend.spawn(Node.ENCLAVE, [sys.executable, "-c", TALKER, str(TALKER_PORT)], name="talker")
    try:
        with client(own_lab, family, TALKER_PORT, "once") as served:
            served.sees("answer")
            change_ports(own_lab, "restart", own_lab.backend.relay_config())
            answers = served.saw("answer")
            before = served.saw("nothing")
            own_lab.backend.deadline(10).poll(lambda: served.saw("nothing") > before + 20, "the client to listen on")
            assert served.saw("answer") == answers
            assert talker.poll() is None
            external = getattr(own_lab.topology, f"external{family}")
            # It is the enclave's own traffic by now, from another port.
            assert any(line.split()[2] == external for line in flows(own_lab) if line.startswith("17 "))
    finally:
        talker.kill()


def test_a_restart_that_changes_nothing_and_the_flows_of_others_are_left_alone(own_lab: Ladder) -> None:
    topology = own_lab.topology
    own_lab.raise_tunnel()
    with client(own_lab, 4, topology.application.echo_port) as ours, client(own_lab, 4, 5353) as others:
        ours.sees("answer")
        others.sees("nothing")

        def named(lines: list[str]) -> set[str]:
            ports = {str(topology.application.echo_port), "5353"}
            return {line for line in lines if line.split()[0] == "17" and line.split()[3] in ports}

        before = named(flows(own_lab))
        own_lab.restart_relay()
        own_lab.wait_ready()
        own_lab.attest_again()
        ours.sees("answer")
        assert named(flows(own_lab)) == before
        change_ports(own_lab, "restart", without_ports(own_lab))
        ours.sees("nothing")
        assert {line for line in before if " 5353 " in line} <= named(flows(own_lab))


def test_a_relay_that_stops_leaves_no_flow_of_its_enclave(own_lab: Ladder) -> None:
    topology = own_lab.topology
    own_lab.raise_tunnel()
    for family in (4, 6):
        own_lab.probe(Node.ENCLAVE, "udp", getattr(topology, f"external{family}"), "7")
        own_lab.probe(Node.EXTERNAL, "udp", getattr(topology, f"pod{family}"), str(topology.application.echo_port))
    enclave = {topology.enclave4, topology.enclave6}
    external = {topology.external4, topology.external6}

    def of_enclave() -> list[str]:
        lines = [line.split() for line in flows(own_lab)]
        return [json.dumps(line) for line in lines if enclave & set(line) and external & set(line)]

    assert len(of_enclave()) >= 4
    own_lab.stop_relay(signal.SIGTERM)
    assert of_enclave() == []
