"""The tunnel's end on a relay without an interface: what the policy and the uplink's state let pass."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from wgvsock.devices.base import TunDevice
from wgvsock.devices.errors import TunGoneError
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy
from wgvsock.egress.settings import PolicySettings
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.settings import parse
from wgvsock.testing import ManualClock

ENCLAVE = {4: "10.73.0.2", 6: "fd73::2"}
GATEWAY = {4: "10.73.0.1", 6: "fd73::1"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


class Bench:
    """A mouth, and the engine's end of it."""

    def __init__(self, headroom: int, policy: Policy) -> None:
        self.told: list[bytes] = []
        self.mouth = Mouth(headroom, ManualClock())
        self.mouth.place(tuple(map(ip_address, GATEWAY.values())), forwards=True)
        self.gate = Gate(policy, lambda packet: self.told.append(bytes(packet)), headroom)
        self.buffer = memoryview(bytearray(70_000))

    def write(self, packet: Packet) -> bool:
        return self.mouth.write(memoryview(bytes(self.mouth.packet_headroom) + bytes(packet)))

    def sent(self) -> bytes | None:
        try:
            return self.mouth.engine.recv(70_000)
        except BlockingIOError:
            return None

    def read(self) -> bytes:
        return bytes(self.buffer[: self.mouth.read_into(self.buffer)])


@pytest.fixture(params=[0, 10], ids=["plain", "gso"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param, Policy())
    yield made
    made.mouth.close()


def to(destination: str) -> Packet:
    return IPv6(src=ENCLAVE[6], dst=destination) if ":" in destination else IP(src=ENCLAVE[4], dst=destination)


def test_it_is_a_device(bench: Bench) -> None:
    device: TunDevice = bench.mouth
    assert (device.name, device.udp_segmentation) == ("userspace", False)
    device.set_offloads(True)


def test_nothing_passes_before_it_is_opened_and_after_it_is_shut(bench: Bench) -> None:
    packet = to("203.0.113.7") / UDP(dport=9)
    for opened in (False, True, False):
        if opened:
            bench.mouth.open(bench.gate)
        else:
            bench.mouth.shut()
        assert bench.write(packet)
        assert (bench.sent() is not None) == opened
        bench.mouth.engine.send(bytes(packet))
        assert bool(bench.read()) == opened
    assert bench.mouth.closed_drops == 4


def test_what_was_on_its_way_is_forgotten(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    bench.write(to("203.0.113.7") / UDP(dport=9))
    bench.mouth.engine.send(bytes(to("203.0.113.7") / UDP(dport=9)))
    bench.mouth.drain()
    assert (bench.sent(), bench.read()) == (None, b"")


def test_the_engine_gets_a_header_with_each_packet_and_the_tunnel_what_it_wants(bench: Bench) -> None:
    packet = bytes(to("203.0.113.7") / UDP(dport=9) / Raw(b"payload"))
    bench.mouth.open(bench.gate)
    bench.write(to("203.0.113.7") / UDP(dport=9) / Raw(b"payload"))
    assert bench.sent() == bytes(10) + packet
    bench.mouth.engine.send(packet)
    assert bench.read() == bytes(bench.mouth.packet_headroom) + packet


def test_what_the_policy_denies_never_reaches_the_engine(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    assert bench.write(to("169.254.169.254") / TCP(dport=80, flags="S"))
    assert bench.sent() is None
    headroom = bench.mouth.packet_headroom
    assert IP(bench.told[0][headroom:])[TCP].flags == "RA"


def test_an_answer_passes_a_policy_that_denies_all() -> None:
    bench = Bench(0, parse(PolicySettings, 'default = "deny"').policy())
    bench.mouth.open(bench.gate)
    call = IP(src="203.0.113.7", dst=ENCLAVE[4]) / TCP(sport=5000, dport=443, flags="S")
    bench.mouth.engine.send(bytes(call))
    assert bench.read() == bytes(call)
    assert bench.write(to("203.0.113.7") / TCP(sport=443, dport=5000, flags="SA"))
    assert bench.sent() is not None
    bench.mouth.close()


@VERSIONS
def test_of_the_relay_names_and_pings_alone_are_within_reach(bench: Bench, version: int) -> None:
    relay = parse(PolicySettings, '[[allow]]\nrelay = true\nprotocol = "any"').policy()
    bench.gate.adopt(relay)
    bench.mouth.open(bench.gate)
    ping = ICMP() if version == 4 else ICMPv6EchoRequest()
    for transport, passes in [
        (UDP(dport=53), True),
        (TCP(dport=53, flags="S"), True),
        (ping, True),
        (TCP(dport=80, flags="S"), False),
        (UDP(dport=80), False),
        (TCP(sport=9809, dport=5000, flags="SA"), True),  # the agent answers the relay, which reads its reports
    ]:
        assert bench.write(to(GATEWAY[version]) / transport)
        assert (bench.sent() is not None) == passes, transport
    bench.mouth.place((ip_address(GATEWAY[version]),), forwards=False)
    bench.write(to(GATEWAY[version]) / UDP(dport=53))
    assert bench.sent() is None


def test_addresses_beside_the_gateway_lead_to_no_loopback(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    for near in ("10.73.0.0", "10.73.0.3"):
        bench.write(to(near) / TCP(dport=80, flags="S"))
        assert bench.sent() is None
    bench.write(to("10.73.0.4") / TCP(dport=80, flags="S"))
    assert bench.sent() is not None
    bench.mouth.place((ip_address(GATEWAY[6]),), forwards=False)
    bench.write(to("10.73.0.3") / TCP(dport=80, flags="S"))
    assert bench.sent() is not None


def test_an_engine_that_is_behind_costs_packets_and_nobody_waits(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    packet = to("203.0.113.7") / UDP(dport=9) / Raw(bytes(60_000))
    written = [bench.write(packet) for _ in range(500)]
    assert written[0]
    assert not written[-1]
    assert bench.mouth.write_error == errno.EAGAIN


def test_what_is_no_packet_is_not_passed_on(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    bench.mouth.engine.send(bytes(19))
    assert bench.read() == b""


def test_a_closed_mouth_says_so(bench: Bench) -> None:
    bench.mouth.open(bench.gate)
    bench.mouth.engine.close()
    assert not bench.write(to("203.0.113.7") / UDP(dport=9))
    assert bench.mouth.write_error == errno.EPIPE
    with pytest.raises(TunGoneError):
        bench.mouth.read_into(bench.buffer)
    bench.mouth.close()
    with pytest.raises(TunGoneError):
        bench.mouth.read_into(bench.buffer)


def test_its_descriptor_stays_the_same_whoever_is_at_the_far_end(bench: Bench) -> None:
    before = bench.mouth.fileno()
    with socket.socket(fileno=socket.dup(bench.mouth.engine.fileno())) as engine:
        bench.mouth.open(bench.gate)
        bench.write(to("203.0.113.7") / UDP(dport=9))
        assert engine.recv(100)
    bench.write(to("203.0.113.7") / UDP(dport=9))
    assert bench.sent() is not None
    assert bench.mouth.fileno() == before
