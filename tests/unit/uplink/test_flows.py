"""Which packets may take a socket."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

from wgvsock.uplink.flows import DatagramFlows, caller_of
from wgvsock.uplink.windows import ITSELF

VERSIONS = pytest.mark.parametrize("version", [4, 6])


def out(version: int, transport: Packet) -> memoryview:
    network = IP(src="10.73.0.2") if version == 4 else IPv6(src="fd73::2")
    return memoryview(bytes(network / transport))


@VERSIONS
def test_a_syn_and_an_echo_may_take_one_and_other_segments_not(version: int) -> None:
    flows = DatagramFlows()
    assert flows.begins(out(version, TCP(flags="S")))
    assert not flows.begins(out(version, TCP(flags="A")))
    assert flows.begins(out(version, ICMP() if version == 4 else ICMPv6EchoRequest()))


@VERSIONS
def test_a_datagram_takes_one_until_its_end_has_one(version: int) -> None:
    flows = DatagramFlows()
    datagram = out(version, UDP(sport=5000, dport=9))
    assert flows.begins(datagram)
    flows.sends(datagram)
    flows.opened(7)
    assert not flows.begins(datagram)
    assert not flows.begins(out(version, UDP(sport=5000, dport=10)))
    assert flows.begins(out(version, UDP(sport=5001, dport=9)))
    flows.closed(7)
    assert flows.begins(datagram)


@VERSIONS
def test_sockets_of_other_kinds_are_nobodys(version: int) -> None:
    flows = DatagramFlows()
    datagram = out(version, UDP(sport=5000))
    flows.sends(datagram)
    flows.sends(out(version, TCP(flags="S")))
    flows.opened(7)
    flows.closed(7)
    assert flows.begins(datagram)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_calls_is_asked_of_the_socket(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        assert caller_of(server.fileno()) is None
        with socket.create_connection(server.getsockname()[:2]) as client:
            accepted, _ = server.accept()
            with accepted:
                version = 4 if family == socket.AF_INET else 6
                assert caller_of(accepted.fileno()) == (version, client.getsockname()[1])
                assert accepted.fileno() >= 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert caller_of(ours.fileno()) == ITSELF
    with socket.socket(socket.AF_UNIX) as idle:
        assert caller_of(idle.fileno()) is None
