import errno
import struct

import pytest

from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy
from wgvsock.testing import DevicePair, MemoryTransport, MemoryTun
from wgvsock.testing.pair import drops, ipv4_packet
from wgvsock.tunnel.inbound import Inbound
from wgvsock.wireguard import DropReason, Profile

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")


class Way:
    """Bob's inbound side. Alice makes the datagrams."""

    def __init__(self, *, headroom: int = 0, profile: Profile = Profile.PLAIN, udp_segmentation: bool = True) -> None:
        self.heard: list[bytes] = []
        self.pair = DevicePair(packet_headroom=headroom, profile=profile)
        self.pair.handshake()
        self.tun = MemoryTun(headroom, udp_segmentation=udp_segmentation)
        self.transport, _ = MemoryTransport.pair()
        self.link = self.transport.link
        self.refusals = 0
        gate = Gate(Policy(allows_by_default=False), self.tun.write, headroom)
        gate.hears = lambda packet, now: self.heard.append(bytes(packet))  # type: ignore[method-assign]
        self.inbound = Inbound(self.pair.bob, self.tun, self.refused, gate)

    def refused(self) -> None:
        self.refusals += 1

    def sealed(self, *packets: bytes) -> list[memoryview]:
        for packet in packets:
            self.pair.alice.send_packet(packet, self.pair.now)
        return [memoryview(datagram) for _, datagram in self.pair.alice.datagrams_to_send()]

    def receive(self, datagrams: list[memoryview]) -> list[bytes]:
        """Move them. Returns the packets that the kernel gets."""
        self.inbound.move_batch(self.link, datagrams, self.pair.clock.advance(0.1))
        packets = []
        while (packet := self.tun.take()) is not None:
            packets.append(packet)
        return packets


@pytest.mark.parametrize(("headroom", "profile"), [(0, Profile.PLAIN), (10, Profile.PLAIN), (10, Profile.GSO)])
def test_a_batch_reaches_the_kernel_in_order(headroom: int, profile: Profile) -> None:
    way = Way(headroom=headroom, profile=profile)
    packets = [bytes(headroom) + ipv4_packet("10.0.0.1", "10.0.0.2", bytes(n)) for n in (0, 1, 15, 1400, 65_515)]
    assert way.receive(way.sealed(*packets)) == packets
    way.tun.close()


UDP_SUPER_PACKET = (
    bytes([1, 5, 28, 0, 4, 0, 20, 0, 6, 0])
    + ipv4_packet("10.0.0.1", "10.0.0.2", b"\0\1\0\2\0\x12\1\1" + b"aaaabbbbcc")[:9]
    + b"\x11"
    + ipv4_packet("10.0.0.1", "10.0.0.2", b"\0\1\0\2\0\x12\1\1" + b"aaaabbbbcc")[10:]
)


def test_a_udp_super_packet_goes_to_the_kernel_in_one_piece() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    assert way.receive(way.sealed(UDP_SUPER_PACKET)) == [UDP_SUPER_PACKET]
    way.tun.close()


def test_an_older_kernel_gets_the_datagrams_of_a_udp_super_packet() -> None:
    way = Way(headroom=10, profile=Profile.GSO, udp_segmentation=False)
    packets = way.receive(way.sealed(UDP_SUPER_PACKET, bytes(10) + PACKET))
    assert [packet[38:] for packet in packets[:3]] == [b"aaaa", b"bbbb", b"cc"]
    assert way.heard == [UDP_SUPER_PACKET, bytes(10) + PACKET]  # the gate, as they came
    assert packets[3] == bytes(10) + PACKET
    way.tun.refuses_writes = True
    way.receive(way.sealed(UDP_SUPER_PACKET))
    assert way.inbound.dropped_by_kernel == 3
    way.tun.close()


def tcp_super_packet(payload: int, size: int) -> bytes:
    ip = ipv4_packet("10.0.0.1", "10.0.0.2", bytes(12) + b"\x50\x10" + bytes(6) + bytes(payload))
    return struct.pack("<BBHHHH", 1, 1, 40, size, 20, 16) + ip[:9] + b"\x06" + ip[10:]


@pytest.mark.parametrize("packet", [tcp_super_packet(2500, 1000), UDP_SUPER_PACKET], ids=["tcp", "udp"])
def test_a_super_packet_that_the_kernel_refuses_reaches_it_in_pieces(packet: bytes) -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.tun.refuses_super_packets = True
    packets = way.receive(way.sealed(packet, bytes(10) + PACKET, packet))
    size = struct.unpack_from("<H", packet, 4)[0]
    payload = packet[50 if packet[1] == 1 else 38 :]
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    assert [piece[-len(expected) :] for piece, expected in zip(packets[:3], pieces, strict=True)] == pieces
    assert [piece[1] for piece in packets] == [0] * 7
    assert (way.inbound.super_packets_refused, way.inbound.dropped_by_kernel) == (2, 0)
    assert way.refusals == 2
    way.tun.close()


@pytest.mark.parametrize(("headroom", "error"), [(10, errno.EIO), (10, errno.ENOMEM), (0, errno.EINVAL)])
def test_what_the_kernel_refuses_for_another_reason_is_dropped(headroom: int, error: int) -> None:
    way = Way(headroom=headroom, profile=Profile.GSO if headroom else Profile.PLAIN)
    packet = tcp_super_packet(2500, 1000)[10 - headroom :]
    written: list[bytes] = []

    def write(packet: memoryview) -> bool:
        written.append(bytes(packet))
        return False

    way.tun.write_error = error
    way.tun.write = write  # type: ignore[method-assign]
    assert way.receive(way.sealed(packet)) == []
    assert written == [packet]
    assert (way.inbound.super_packets_refused, way.inbound.dropped_by_kernel, way.refusals) == (0, 1, 0)
    way.tun.close()


def test_a_super_packet_that_the_kernel_takes_in_no_form_is_no_reason_to_blame_the_offloads() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.tun.write_error = errno.EINVAL
    way.tun.write = lambda packet: False  # type: ignore[method-assign]
    assert way.receive(way.sealed(tcp_super_packet(2500, 1000))) == []
    assert (way.inbound.super_packets_refused, way.inbound.dropped_by_kernel, way.refusals) == (0, 3, 0)
    way.tun.close()


def test_a_bad_datagram_does_not_hold_up_the_next() -> None:
    way = Way()
    good = way.sealed(PACKET)
    assert way.receive([memoryview(b"garbage"), *good, *good]) == [PACKET]
    assert drops(way.pair.bob) == {DropReason.MALFORMED_MESSAGE: 1, DropReason.REPLAYED_COUNTER: 1}
    way.tun.close()


def test_a_packet_that_the_kernel_refuses_is_counted() -> None:
    way = Way()
    way.tun.refuses_writes = True
    assert way.receive(way.sealed(PACKET, PACKET)) == []
    assert way.inbound.dropped_by_kernel == 2
    way.tun.close()


def test_a_peer_s_packet_proves_the_link() -> None:
    way = Way()
    way.receive(way.sealed(PACKET))
    assert way.link.authenticated
    way.tun.close()


def test_a_keepalive_proves_the_link_before_what_comes_behind_it_is_looked_at() -> None:
    """An initiation after it is a peer's, not a stranger's."""
    way = Way()
    way.pair.alices_peer.announce_path(way.pair.now)
    datagrams = way.sealed()
    seen = []
    random = way.pair.bob.random

    def watch(size: int) -> bytes:
        seen.append(way.link.authenticated)  # an answer to the initiation is being made
        return random(size)

    way.pair.bob.random = watch
    assert way.receive(datagrams) == []
    assert seen
    assert all(seen)
    way.tun.close()


def test_an_initiation_proves_the_link() -> None:
    way = Way()
    way.pair.alices_peer.retry_handshake(way.pair.clock.advance(1.0))
    way.receive(way.sealed())
    assert way.link.authenticated
    way.tun.close()


def test_garbage_and_replays_prove_nothing() -> None:
    way = Way()
    seen = way.sealed(PACKET)
    other, _ = MemoryTransport.pair()
    way.inbound.move_batch(other.link, seen, way.pair.now)
    assert other.link.authenticated
    way.receive([memoryview(b"garbage"), *seen])
    assert not way.link.authenticated
    way.tun.close()


def test_a_peer_on_another_link_proves_nothing_about_this_one() -> None:
    way = Way()
    now = way.pair.now
    other, _ = MemoryTransport.pair()
    way.inbound.move_batch(other.link, way.sealed(PACKET), now)
    way.inbound.move_batch(way.link, [memoryview(b"garbage")], now)
    assert other.link.authenticated
    assert not way.link.authenticated
    way.tun.close()


@pytest.mark.parametrize(("headroom", "profile"), [(0, Profile.PLAIN), (10, Profile.PLAIN), (10, Profile.GSO)])
def test_what_somebody_takes_never_reaches_the_kernel(headroom: int, profile: Profile) -> None:
    way = Way(headroom=headroom, profile=profile)
    packets = [bytes(headroom) + ipv4_packet("10.0.0.1", "10.0.0.2", payload) for payload in (b"a", b"mine", b"b")]
    offered: list[tuple[bytes, float]] = []

    def take(packet: memoryview, now: float) -> bool:
        offered.append((bytes(packet), now))
        return bytes(packet) == packets[1]

    way.inbound.take = take
    assert way.receive(way.sealed(*packets)) == [packets[0], packets[2]]
    assert offered == [(packet, way.pair.now) for packet in packets]
    way.inbound.take = None
    assert way.receive(way.sealed(*packets)) == packets
    assert way.inbound.dropped_by_kernel == 0
    way.tun.close()


def test_the_time_of_the_last_packet_is_kept_and_that_of_a_keepalive_is_not() -> None:
    way = Way()
    assert way.inbound.packet_at == float("-inf")
    way.receive(way.sealed(PACKET))
    at = way.inbound.packet_at
    assert at == way.pair.now
    way.pair.alices_peer.announce_path(way.pair.now)
    keepalive, *_ = [memoryview(datagram) for _, datagram in way.pair.alice.datagrams_to_send()]
    way.receive([keepalive])
    assert way.inbound.packet_at == at
    way.tun.close()
