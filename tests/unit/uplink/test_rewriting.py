"""Port 53 of a gateway, and where it leads."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from wgvsock.uplink.rewriting import NamePort

GATEWAYS = (ip_address("10.73.0.1"), ip_address("fd73::1"))
PORT = 40053
NAMES = NamePort(GATEWAYS, PORT)

CASES = [
    pytest.param(IP(src="10.73.0.2", dst="10.73.0.1"), id="ipv4"),
    pytest.param(IPv6(src="fd73::2", dst="fd73::1"), id="ipv6"),
]


def parsed(data: bytes) -> Packet:
    return IP(data) if data[0] >> 4 == 4 else IPv6(data)


def with_right_checksum(data: bytes) -> bytes:
    packet = parsed(data)
    del packet[TCP].chksum
    return bytes(packet)


@pytest.mark.parametrize("network", CASES)
@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_question_goes_to_the_forwarder_and_its_answer_comes_from_port_53(network: Packet, size: int) -> None:
    question = bytearray(bytes(network / TCP(sport=5000, dport=53) / Raw(bytes(range(size)))))
    NAMES.to_forwarder(memoryview(question))
    assert parsed(bytes(question))[TCP].dport == PORT
    assert with_right_checksum(bytes(question)) == question

    back = network.copy()
    back.src, back.dst = network.dst, network.src
    answer = bytes(back / TCP(sport=PORT, dport=5000) / Raw(bytes(range(size))))
    changed = NAMES.answered(answer)
    assert parsed(changed)[TCP].sport == 53
    assert with_right_checksum(changed) == changed


def test_every_checksum_survives() -> None:
    for value in range(0, 65536, 251):
        packet = IP(src="10.73.0.2", dst="10.73.0.1") / TCP(sport=value, dport=53) / Raw(value.to_bytes(2, "big"))
        question = bytearray(bytes(packet))
        NAMES.to_forwarder(memoryview(question))
        assert with_right_checksum(bytes(question)) == question


def test_an_open_checksum_stays_open() -> None:
    question = bytearray(bytes(IP(src="10.73.0.2", dst="10.73.0.1") / TCP(sport=1, dport=53, chksum=0x1234)))
    NAMES.to_forwarder(memoryview(question), checksum_is_open=True)
    assert (parsed(bytes(question))[TCP].dport, parsed(bytes(question))[TCP].chksum) == (PORT, 0x1234)


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="10.73.0.2", dst="10.73.0.9") / TCP(dport=53),
        IP(src="10.73.0.2", dst="10.73.0.1") / TCP(dport=54),
        IP(src="10.73.0.2", dst="10.73.0.1", flags="MF") / TCP(dport=53),
        IP(src="10.73.0.2", dst="10.73.0.1") / UDP(dport=53),
        IP(src="10.73.0.2", dst="10.73.0.1", proto=132) / Raw(b"\0\1\0\x35" + bytes(20)),
        IP(src="10.73.0.2", dst="10.73.0.1"),
        IPv6(src="fd73::2", dst="fd73::1") / Raw(bytes(4)),
    ],
)
def test_everything_else_stays_as_it_is(packet: Packet) -> None:
    data = bytearray(bytes(packet))
    NAMES.to_forwarder(memoryview(data))
    assert data == bytes(packet)


def test_other_packets_for_the_enclave_stay_as_they_are() -> None:
    for data in (b"\0", bytes(IP(src="203.0.113.9", dst="10.73.0.2") / TCP(sport=PORT, dport=9))):
        assert NAMES.answered(data) == data


def test_a_tunnel_of_one_ip_version_leaves_the_other_alone() -> None:
    data = bytearray(bytes(IP(src="10.73.0.2", dst="10.73.0.1") / TCP(dport=53)))
    NamePort(GATEWAYS[1:], PORT).to_forwarder(memoryview(data))
    assert data == bytes(IP(src="10.73.0.2", dst="10.73.0.1") / TCP(dport=53))
