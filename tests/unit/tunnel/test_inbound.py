import pytest

from wgvsock.testing import DevicePair, MemoryTransport, MemoryTun
from wgvsock.testing.pair import drops, ipv4_packet
from wgvsock.tunnel.inbound import Inbound
from wgvsock.wireguard import DropReason, Profile

PACKET = ipv4_packet("10.0.0.1", "10.0.0.2", b"payload")


class Way:
    """Bob's way in; Alice makes the datagrams."""

    def __init__(self, *, headroom: int = 0, profile: Profile = Profile.PLAIN, udp_segmentation: bool = True) -> None:
        self.pair = DevicePair(packet_headroom=headroom, profile=profile)
        self.pair.handshake()
        self.tun = MemoryTun(headroom, udp_segmentation=udp_segmentation)
        self.transport, _ = MemoryTransport.pair()
        self.link = self.transport.link
        self.inbound = Inbound(self.pair.bob, self.tun)

    def sealed(self, *packets: bytes) -> list[memoryview]:
        for packet in packets:
            self.pair.alice.send_packet(packet, self.pair.now)
        return [memoryview(datagram) for _, datagram in self.pair.alice.datagrams_to_send()]

    def receive(self, datagrams: list[memoryview]) -> list[bytes]:
        """Move them; the packets that the kernel gets."""
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
    assert packets[3] == bytes(10) + PACKET
    way.tun.refuses_writes = True
    way.receive(way.sealed(UDP_SUPER_PACKET))
    assert way.inbound.dropped_by_kernel == 3
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
