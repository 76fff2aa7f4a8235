import struct
from ipaddress import ip_network

import pytest

from tests.unit.tunnel.queued import segment
from wgvsock.egress.gate import Gate
from wgvsock.egress.settings import PolicySettings
from wgvsock.settings import parse
from wgvsock.testing import DevicePair, MemoryTransport, MemoryTun, transport
from wgvsock.testing.pair import BOB, drops, ipv4_packet
from wgvsock.tunnel.coalescer import MAXIMUM_ACKNOWLEDGEMENTS
from wgvsock.tunnel.outbound import OVERHEAD, Outbound
from wgvsock.virtio_net import HeaderFault, check_header
from wgvsock.wireguard import DropReason, Profile, public_key

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")
UNROUTED = ipv4_packet("10.0.0.1", "192.0.2.1", b"payload")
OPEN_CHECKSUM = bytes([1, 0, 0, 0, 0, 0, 20, 0, 6, 0])
SEGMENTED = bytes([0, 1, 40, 0, 100, 0, 20, 0, 16, 0])
UDP_PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"\0\1\0\2\0\x0c\1\1data")
UDP = OPEN_CHECKSUM + UDP_PACKET[:6] + b"\x40\0\x40\x11" + UDP_PACKET[10:]
OTHER_FLOW = UDP[:31] + b"\x99" + UDP[32:]


class Way:
    """Alice's outbound side. What she sends is recorded, not carried.

    It is busy: a packet has just been sent, so that the next one does not count as a single one.
    """

    def __init__(
        self,
        *,
        headroom: int = 0,
        profile: Profile = Profile.PLAIN,
        session: bool = True,
        silent: bool = False,
        rules: str | None = None,
    ) -> None:
        self.pair = DevicePair(packet_headroom=headroom, profile=profile)
        self.tun = MemoryTun(headroom)
        self.transport, _ = MemoryTransport.pair()
        self.transport.severed = True
        self.link = self.transport.link
        if session:
            self.pair.handshake()
        self.pair.alices_peer.set_endpoint(self.link)
        gate = None if rules is None else Gate(parse(PolicySettings, rules).policy(), self.tun.write, headroom)
        self.outbound = Outbound(self.pair.alice, self.tun, self.transport, self.pair.clock, gate)
        if session and not silent and gate is None:
            assert self.send(bytes(headroom) + PACKET) == [bytes(headroom) + PACKET]

    def send(self, *packets: bytes) -> list[bytes]:
        """Move a batch of these packets. Returns those that Bob gets out of what was carried."""
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
    assert way.send() == [PACKET, PACKET]  # the silence is over: all that is there
    way.pair.clock.advance(1)
    assert way.send(PACKET, PACKET) == [PACKET]
    way.tun.close()


def test_silence_leaves_no_packet_behind_that_was_read_already() -> None:
    way = Way(headroom=10, profile=Profile.GSO, silent=True)
    way.outbound.offloads = True
    assert way.send(UDP, OTHER_FLOW) == [UDP, OTHER_FLOW]
    way.tun.close()


def test_a_batch_ends_so_that_others_get_their_turn() -> None:
    way = Way()
    way.outbound.batch_packets = 32
    assert len(way.send(*[PACKET] * 37)) == 32
    assert len(way.send()) == 5
    way.tun.close()


@pytest.mark.parametrize(("limit", "waiting", "batches"), [(1, 3, [2, 1]), (10, 30, [11, 11, 8])])
def test_a_batch_ends_with_the_packet_that_was_read_already(limit: int, waiting: int, batches: list[int]) -> None:
    """Each packet that is read ahead belongs to another flow: it goes out, and nothing is read ahead for it."""
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.batch_packets = limit
    way.outbound.offloads = True
    packets = [OTHER_FLOW if number % 2 else UDP for number in range(waiting)]
    sent = [way.send(*packets), *(way.send() for _ in batches[1:])]
    assert [len(batch) for batch in sent] == batches
    assert [packet for batch in sent for packet in batch] == packets
    way.tun.close()


def test_of_acknowledgements_that_wait_the_newest_goes_out() -> None:
    way = Way()
    packets = [segment(number, headroom=0) for number in (1, 2, 3)]
    assert way.send(*packets, PACKET) == [packets[-1], PACKET]
    assert way.outbound.acknowledgements_superseded == 2
    way.tun.close()


def test_acknowledgements_count_as_packets_of_a_batch() -> None:
    way = Way()
    way.outbound.batch_packets = 20
    packets = [segment(number, headroom=0) for number in range(1, 200)]
    assert way.send(*packets) == [packets[MAXIMUM_ACKNOWLEDGEMENTS - 1]]
    way.tun.close()


def test_a_batch_of_super_packets_is_bounded_in_bytes() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.batch_bytes = 40_000
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


def super_packet(protocol: int, payload: bytes, size: int) -> bytes:
    """What the kernel hands over for a connection or a program that cuts arbitrarily."""
    headers = bytes(12) + b"\x50\x10" + bytes(6) if protocol == 6 else bytes(8)
    ip = ipv4_packet("10.0.0.1", "10.0.0.2", headers + payload)
    gso_type, offset = (1, 16) if protocol == 6 else (5, 6)
    virtio = struct.pack("<BBHHHH", 1, gso_type, 20 + len(headers), size, 20, offset)
    return virtio + ip[:9] + bytes([protocol]) + ip[10:]


TOO_FINE = {
    "MSS 88": super_packet(6, bytes(range(256)) * 30, 88),
    "path MTU 552": super_packet(6, bytes(range(256)) * 255, 500),
    "many datagrams": super_packet(17, bytes(range(200)), 2),
}


@pytest.mark.parametrize("packet", TOO_FINE.values(), ids=TOO_FINE)
def test_a_super_packet_that_the_far_end_would_refuse_travels_in_pieces(
    packet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_QUEUE_LIMIT", 200)  # a real link's buffer holds some thousand
    assert check_header(memoryview(packet)) is HeaderFault.GSO_SIZE
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    plain = bytes(10) + PACKET
    arrived = way.send(plain, packet, plain)
    assert (arrived[0], arrived[-1]) == (plain, plain)
    size = struct.unpack_from("<H", packet, 4)[0]
    headers = 50 if packet[1] == 1 else 38
    payloads = [piece[headers:] for piece in arrived[1:-1]]
    assert b"".join(payloads) == packet[headers:]
    assert {len(payload) for payload in payloads[:-1]} == {size}
    assert all(check_header(memoryview(piece)) is None for piece in arrived)
    assert drops(way.pair.bob) == {}
    way.tun.close()


def test_pieces_wait_for_the_handshake_as_packets_do() -> None:
    way = Way(headroom=10, profile=Profile.GSO, session=False)
    way.outbound.offloads = True
    assert way.send(TOO_FINE["MSS 88"]) == []
    way.pair.alices_peer.set_endpoint(BOB)
    way.pair.alices_peer.retry_handshake(way.pair.now)
    way.pair.transfer()
    assert len(way.pair.bob.packets_to_deliver()) == 88  # 7,680 bytes
    way.tun.close()


def test_pieces_for_nobody_or_for_a_peer_that_is_not_there_are_counted() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    lost = TOO_FINE["many datagrams"]
    assert way.send(lost[:26] + bytes([192, 0, 2, 1]) + lost[30:]) == []
    assert way.pair.alice.statistics().drops == {DropReason.NO_ROUTE: 1}
    way.pair.alices_peer.set_endpoint("closed")
    assert way.send(lost) == []
    assert way.outbound.dropped_unreachable == 100
    way.tun.close()


def test_pieces_whose_session_ends_on_the_way_are_staged() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    way.pair.clock.advance(181)
    assert way.send(TOO_FINE["many datagrams"]) == []
    assert way.pair.alice.statistics().peers[way.pair.alices_peer.public_key].staged_packets == 100
    way.tun.close()


def test_a_link_that_pieces_fill_is_reported() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    way.link.block()
    assert way.send(TOO_FINE["many datagrams"]) == []
    assert way.outbound.dropped_backlog > 0
    assert way.blocked is way.link
    way.tun.close()


def test_what_was_queued_with_offloads_goes_out_while_the_peers_take_it() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.peers_take_super_packets = True
    assert way.send(UDP, super_packet(6, bytes(3000), 1000)) == [UDP, super_packet(6, bytes(3000), 1000)]
    assert way.outbound.dropped_offloaded == 0
    way.tun.close()


def test_with_offloads_headers_travel_along() -> None:
    way = Way(headroom=10, profile=Profile.GSO)
    way.outbound.offloads = True
    assert way.send(UDP) == [UDP]
    way.tun.close()


@pytest.mark.parametrize(("headroom", "profile"), [(0, Profile.PLAIN), (10, Profile.PLAIN), (10, Profile.GSO)])
def test_a_packet_of_our_own_goes_the_way_of_the_others(headroom: int, profile: Profile) -> None:
    way = Way(headroom=headroom, profile=profile)
    way.outbound.send(bytes(headroom) + PACKET)
    assert way.send() == [bytes(headroom) + PACKET]
    way.outbound.send(bytes(headroom) + UNROUTED)
    assert way.send() == []
    assert drops(way.pair.alice) == {DropReason.NO_ROUTE: 1}
    way.tun.close()


def test_a_packet_of_our_own_finds_the_same_limits() -> None:
    way = Way()
    way.link.block()
    while way.link.reserve(1) is not None:
        way.link.commit(1)
    way.outbound.send(PACKET)
    assert way.outbound.dropped_backlog == 1
    way.pair.alices_peer.set_endpoint("gone")
    way.outbound.send(PACKET)
    assert way.outbound.dropped_unreachable == 1
    way.tun.close()


@pytest.mark.parametrize("headroom", [0, 10])
def test_a_gate_lets_some_packets_out_and_answers_the_others(headroom: int) -> None:
    way = Way(headroom=headroom, rules='allow = [{network = "10.0.0.2/32"}]\ndefault = "deny"')
    way.outbound._last_packet_at = way.pair.now  # busy: all that is there goes in one batch
    front = bytes(headroom)
    query = front + UDP[10:]
    connection = front + super_packet(6, b"", 0)[10:]
    assert way.send(query, connection, query, connection) == [connection] * 2
    assert way.outbound.dropped_denied == 2
    told = way.tun.take()
    assert told is not None
    assert told[headroom + 20 : headroom + 22] == bytes([3, 13])
    way.tun.close()


@pytest.mark.parametrize("rules", ['default = "deny"', 'default = "allow"'])
def test_a_gate_judges_super_packets_and_those_that_are_cut_too_fine(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_QUEUE_LIMIT", 200)
    way = Way(headroom=10, profile=Profile.GSO, rules=rules)
    way.outbound.offloads = True
    way.outbound._last_packet_at = way.pair.now
    arrived = way.send(UDP, super_packet(6, bytes(3000), 1000), TOO_FINE["many datagrams"])
    assert len(arrived) == (102 if "allow" in rules else 0)
    assert way.outbound.dropped_denied == (0 if "allow" in rules else 3)
    way.tun.close()


def test_a_packet_of_our_own_waits_for_no_session_and_asks_for_one() -> None:
    way = Way(session=False)
    way.outbound.send(PACKET)
    assert way.pair.alices_peer.statistics().staged_packets == 0
    assert way.pair.alices_peer.statistics().handshakes_initiated == 1
    way.tun.close()
