from ipaddress import ip_network

import pytest

from wgvsock.testing import DevicePair, MemoryTransport, MemoryTun
from wgvsock.testing.pair import BOB, ipv4_packet
from wgvsock.tunnel import outbound
from wgvsock.tunnel.outbound import OVERHEAD, Outbound
from wgvsock.wireguard import DropReason, Profile, public_key

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")
UNROUTED = ipv4_packet("10.0.0.1", "192.0.2.1", b"payload")
OPEN_CHECKSUM = bytes([1, 0, 0, 0, 0, 0, 20, 0, 6, 0])
SEGMENTED = bytes([0, 1, 40, 0, 100, 0, 20, 0, 16, 0])
UDP_PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"\0\1\0\2\0\x0c\1\1data")
UDP = OPEN_CHECKSUM + UDP_PACKET[:6] + b"\x40\0\x40\x11" + UDP_PACKET[10:]


class Way:
    """Alice's way out; what leaves her is noted, not carried.

    It is busy: a packet has just been sent, so that the next one is not taken to be alone.
    """

    def __init__(
        self,
        *,
        headroom: int = 0,
        profile: Profile = Profile.PLAIN,
        session: bool = True,
        silent: bool = False,
    ) -> None:
        self.pair = DevicePair(packet_headroom=headroom, profile=profile)
        self.tun = MemoryTun(headroom)
        self.transport, _ = MemoryTransport.pair()
        self.transport.severed = True
        self.link = self.transport.link
        if session:
            self.pair.handshake()
        self.pair.alices_peer.set_endpoint(self.link)
        self.outbound = Outbound(self.pair.alice, self.tun, self.transport, self.pair.clock)
        if session and not silent:
            assert self.send(bytes(headroom) + PACKET) == [bytes(headroom) + PACKET]

    def send(self, *packets: bytes) -> list[bytes]:
        """Move a batch of these packets; those that Bob gets out of what was carried."""
        for packet in packets:
            self.tun.inject(packet)
        self.blocked = self.outbound.move_batch()
        for datagram in self.transport.carried:
            self.pair.bob.receive_datagram(datagram, "alice", self.pair.now)
        self.transport.carried.clear()
        return self.pair.bob.packets_to_deliver()


def test_a_batch_is_sealed_and_sent_in_order() -> None:
    way = Way()
    packets = [ipv4_packet("10.0.0.1", "10.0.0.2", bytes(n)) for n in range(40)]
    assert way.send(*packets) == packets
    assert way.blocked is None
    assert way.send() == []
    way.tun.close()


def test_a_packet_after_silence_goes_out_before_the_next_is_looked_for() -> None:
    way = Way(silent=True)
    assert way.send(PACKET, PACKET, PACKET) == [PACKET]
    assert way.send() == [PACKET, PACKET]  # no silence any more: all that is there
    way.pair.clock.advance(1)
    assert way.send(PACKET, PACKET) == [PACKET]
    way.tun.close()


def test_silence_leaves_no_packet_behind_that_was_read_already() -> None:
    way = Way(headroom=10, profile=Profile.GSO, silent=True)
    way.outbound.offloads = True
    other = UDP[:31] + b"\x99" + UDP[32:]
    assert way.send(UDP, other) == [UDP, other]
    way.tun.close()


def test_a_batch_ends_so_that_others_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "BATCH_PACKETS", 32)
    way = Way()
    assert len(way.send(*[PACKET] * 37)) == 32
    assert len(way.send()) == 5
    way.tun.close()


def test_a_batch_leaves_no_packet_behind_that_was_read_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "BATCH_PACKETS", 1)
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    other = UDP[:31] + b"\x99" + UDP[32:]
    assert way.send(UDP, other, UDP) == [UDP, other, UDP]
    way.tun.close()


def test_a_batch_of_super_packets_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "BATCH_BYTES", 40_000)
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    big = bytes(10) + ipv4_packet("10.0.0.1", "10.0.0.2", bytes(16_000))
    assert way.send(*[big] * 5) == [big] * 3
    assert way.send() == [big] * 2
    way.tun.close()


def test_packets_for_two_peers_go_their_ways() -> None:
    way = Way()
    way.pair.alice.add_peer(
        public_key(b"a third peer that never answers."),
        allowed_ips=[ip_network("10.0.0.3/32")],
        endpoint="elsewhere",
        now=way.pair.now,
    )
    other = ipv4_packet("10.0.0.1", "10.0.0.3")
    assert way.send(PACKET, other, PACKET, other, PACKET) == [PACKET] * 3
    way.tun.close()


@pytest.mark.parametrize("headroom", [0, 10])
def test_the_longest_packet_and_every_padding_fit(headroom: int) -> None:
    way = Way(headroom=headroom, profile=Profile.GSO if headroom else Profile.PLAIN)
    way.outbound.offloads = bool(headroom)
    for length in (*range(17), *range(65_500, 65_516)):
        packet = bytes(headroom) + ipv4_packet("10.0.0.1", "10.0.0.2", bytes(length))
        way.tun.inject(packet)
        way.outbound.move_batch()
        (datagram,) = way.transport.carried
        assert len(datagram) <= len(packet) + OVERHEAD
        assert way.send() == [packet]
    way.tun.close()


def test_a_first_packet_waits_in_the_core_for_the_handshake() -> None:
    way = Way(session=False)
    assert way.send(PACKET) == []
    way.pair.alices_peer.set_endpoint(BOB)
    way.pair.alices_peer.retry_handshake(way.pair.now)
    way.pair.transfer()
    assert way.pair.bob.packets_to_deliver() == [PACKET]
    way.tun.close()


def test_a_first_packet_waits_even_while_there_is_no_way_to_the_peer() -> None:
    way = Way(session=False)
    way.pair.alices_peer.set_endpoint("not yet reachable")
    way.send(PACKET)
    assert way.pair.alice.statistics().peers[way.pair.alices_peer.public_key].staged_packets == 1
    assert way.outbound.dropped_unreachable == 0
    way.tun.close()


def test_a_packet_without_route_does_not_hold_up_the_next() -> None:
    way = Way()
    assert way.send(UNROUTED, PACKET) == [PACKET]
    assert way.pair.alice.statistics().drops == {DropReason.NO_ROUTE: 1}
    way.tun.close()


def test_a_peer_that_cannot_be_reached_loses_its_packets() -> None:
    way = Way()
    way.pair.alices_peer.set_endpoint("closed")
    assert way.send(PACKET, PACKET) == []
    assert way.outbound.dropped_unreachable == 2
    assert way.blocked is None
    way.tun.close()


def test_a_full_link_loses_packets_and_is_reported() -> None:
    way = Way()
    way.link.block()
    while not way.outbound.dropped_backlog:
        assert way.send(*[PACKET] * 20) == []
    assert way.blocked is way.link
    way.tun.close()


def test_what_was_queued_with_offloads_is_dropped_without_them() -> None:
    way = Way(headroom=10)
    plain = bytes(10) + PACKET
    validated = bytes([2]) + bytes(9) + PACKET
    assert way.send(OPEN_CHECKSUM + PACKET, SEGMENTED + PACKET, plain, validated) == [plain, plain]
    assert way.outbound.dropped_offloaded == 2
    way.tun.close()


def test_with_offloads_headers_travel_along() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    assert way.send(UDP) == [UDP]
    way.tun.close()
