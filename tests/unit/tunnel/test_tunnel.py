import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from wgvsock.devices.errors import TunGoneError
from wgvsock.testing import ManualClock, MemoryTransport, MemoryTun, SeededRandom, without_waiting
from wgvsock.testing.pair import ipv4_packet
from wgvsock.tunnel.tunnel import Tunnel, TunnelDrop
from wgvsock.wireguard import (
    Device,
    EndpointChanged,
    Event,
    HandshakeCompleted,
    HandshakeFailed,
    Peer,
    Profile,
    generate_private_key,
    public_key,
)
from wgvsock.wireguard.messages import HandshakeInitiation, TransportData, parse_message

TO_RIGHT = ipv4_packet("10.0.0.1", "10.0.0.2", b"to the right")
TO_LEFT = ipv4_packet("10.0.0.2", "10.0.0.1", b"to the left")
THIRD = public_key(b"a third peer that never answers.")


@dataclass
class Side:
    """One tunnel with everything around it in memory."""

    name: str
    transport: MemoryTransport
    headroom: int
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = SeededRandom(self.name)
        self.tun = MemoryTun(self.headroom)
        self.device = Device(random=random, wall_clock=ManualClock().wall_clock, packet_headroom=self.headroom)
        self.private_key = generate_private_key(random)
        self.loop = asyncio.get_running_loop()
        self.tunnel = Tunnel(self.device, self.tun, self.transport, clock=self.loop.time, on_event=self.events.append)

    def know(self, other: "Side", *, number: int, dials: bool, profile: Profile) -> Peer:
        self.device.set_private_key(self.private_key, self.loop.time())
        return self.device.add_peer(
            public_key(other.private_key),
            allowed_ips=[ip_network(f"10.0.0.{number}/32")],
            endpoint=self.transport.link.address if dials else None,
            profile=profile,
            now=self.loop.time(),
        )

    @property
    def peer(self) -> Peer:
        return next(iter(self.device.peers.values()))

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def takes(self) -> bytes:
        """Return the next packet that the kernel of this side gets."""
        async with asyncio.timeout(30):
            for _ in range(10_000):
                packet = self.tun.take()
                if packet is not None:
                    return packet
                await asyncio.sleep(0.01)
        raise AssertionError("no packet came")


@asynccontextmanager
async def sides(*, headroom: int = 0, profile: Profile = Profile.PLAIN) -> AsyncIterator[tuple[Side, Side]]:
    """Left, the dialling end, and right."""
    transports = MemoryTransport.pair()
    left, right = Side("left", transports[0], headroom), Side("right", transports[1], headroom)
    left.know(right, number=2, dials=True, profile=profile)
    right.know(left, number=1, dials=False, profile=profile)
    async with left.tunnel, right.tunnel:
        yield left, right


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def established(left: Side, right: Side) -> None:
    left.tun.inject(bytes(left.headroom) + TO_RIGHT)
    await right.takes()
    await turns()


@without_waiting
async def test_a_packet_starts_the_handshake_and_both_ways_carry() -> None:
    async with sides() as (left, right):
        left.tun.inject(TO_RIGHT)
        assert await right.takes() == TO_RIGHT
        right.tun.inject(TO_LEFT)
        assert await left.takes() == TO_LEFT
        assert len(left.of(HandshakeCompleted)) == len(right.of(HandshakeCompleted)) == 1
        assert left.transport.link.authenticated
        assert right.transport.link.authenticated


@without_waiting
async def test_an_answer_of_the_kernel_goes_out_without_another_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides() as (left, right):
        await established(left, right)
        left.transport.carried.clear()
        right.transport.carried.clear()
        right.loop.remove_reader(right.tun.fileno())  # only the look behind a written packet finds anything

        def write_and_answer(_packet: memoryview) -> bool:
            right.tun.inject(TO_LEFT)
            return True

        monkeypatch.setattr(right.tun, "write", write_and_answer)
        left.tun.inject(TO_RIGHT)
        assert await left.takes() == TO_LEFT


@without_waiting
async def test_the_timer_carries_out_what_is_due() -> None:
    async with sides() as (left, right):
        await established(left, right)
        left.transport.carried.clear()
        await asyncio.sleep(9)
        assert right.transport.carried[1:] == []  # a response, and no keepalive yet
        await asyncio.sleep(2)
        assert len(right.transport.carried[-1]) == 32  # KEEPALIVE_TIMEOUT after data that was not answered


@without_waiting
async def test_an_earlier_deadline_moves_the_timer() -> None:
    async with sides() as (left, right):
        await established(left, right)
        await asyncio.sleep(20)
        count = len(left.transport.carried)
        left.peer.set_persistent_keepalive(3, left.loop.time())
        left.tunnel.wake()
        await asyncio.sleep(10)
        assert len(left.transport.carried) - count >= 3


@without_waiting
async def test_a_session_renews_itself_under_traffic() -> None:
    async with sides() as (left, right):
        for _ in range(140):
            left.tun.inject(TO_RIGHT)
            assert await right.takes() == TO_RIGHT
            await asyncio.sleep(1)
        assert len(left.of(HandshakeCompleted)) == 2


@without_waiting
async def test_a_blocked_link_leaves_the_queue_in_the_interface() -> None:
    async with sides() as (left, right):
        await established(left, right)
        left.transport.link.block()
        for _ in range(50):
            left.tun.inject(TO_RIGHT)
        await turns()
        assert right.tun.take() is None
        before = left.tunnel.statistics()
        assert before.own_drops[TunnelDrop.BACKLOG] == 0
        left.tun.inject(TO_RIGHT)
        await turns()
        left.transport.link.unblock()
        for _ in range(51):
            assert await right.takes() == TO_RIGHT
        assert left.tunnel.statistics().own_drops[TunnelDrop.BACKLOG] == 0


@without_waiting
async def test_with_several_peers_a_blocked_one_loses_its_own_packets_only() -> None:
    async with sides() as (left, right):
        await established(left, right)
        left.device.add_peer(THIRD, allowed_ips=[ip_network("10.0.0.3/32")], now=left.loop.time())
        left.tunnel.wake()
        left.transport.link.block()
        for _ in range(100):
            left.tun.inject(TO_RIGHT)
            await turns()
        assert left.tunnel.statistics().own_drops[TunnelDrop.BACKLOG] > 0


@without_waiting
async def test_datagrams_of_the_core_that_find_no_room_are_lost() -> None:
    async with sides() as (left, right):
        await established(left, right)
        left.transport.link.block()
        while left.transport.link.reserve(1) is not None:
            left.transport.link.commit(1)
        left.peer.retry_handshake(left.loop.time())
        left.tunnel.wake()
        await turns()
        assert len(left.of(HandshakeCompleted)) == 1


@without_waiting
async def test_a_new_stream_begins_with_a_handshake() -> None:
    async with sides() as (left, right):
        await established(left, right)
        await asyncio.sleep(1)
        left.device.add_peer(THIRD, endpoint="elsewhere", now=left.loop.time())
        left.transport.on_connected(left.transport.link)
        await turns()
        assert len(left.of(HandshakeCompleted)) == 2
        right.transport.on_connected(left.transport.link)  # nobody's endpoint there
        await turns()
        assert len(right.of(HandshakeCompleted)) == 2


@without_waiting
async def test_a_new_stream_is_known_by_the_session_before_the_handshake_is_looked_at() -> None:
    async with sides() as (left, right):
        await established(left, right)
        await asyncio.sleep(1)
        left.transport.carried.clear()
        left.transport.on_connected(left.transport.link)
        await turns()
        kinds = [type(parse_message(datagram)) for datagram in left.transport.carried]
        assert kinds[:2] == [TransportData, HandshakeInitiation]


@without_waiting
async def test_a_peer_that_answers_no_handshake_gets_a_new_stream() -> None:
    async with sides() as (left, _right):
        left.transport.severed = True
        left.tun.inject(TO_RIGHT)
        await asyncio.sleep(120)
        assert len(left.of(HandshakeFailed)) == 1
        assert left.transport.link.closed == ["the peer does not answer handshakes"]


@without_waiting
async def test_giving_up_on_a_peer_without_a_way_to_it() -> None:
    async with sides() as (left, _right):
        left.transport.severed = True
        left.tun.inject(TO_RIGHT)
        await turns()
        left.peer.set_endpoint("gone")
        await asyncio.sleep(120)
        assert len(left.of(HandshakeFailed)) == 1
        assert left.transport.link.closed == []


@without_waiting
async def test_a_peer_that_moves_is_heard_of_and_gets_its_queue() -> None:
    async with sides() as (left, right):
        await established(left, right)
        assert len(right.of(EndpointChanged)) == 1
        # The way from right to left blocks and never recovers; left appears from elsewhere.
        right.transport.link.block()
        right.tun.inject(TO_LEFT)
        await turns()
        right.peer.set_endpoint("elsewhere, once")
        right.transport.link.writable = True
        right.tun.inject(TO_LEFT)
        left.tun.inject(TO_RIGHT)
        assert await right.takes() == TO_RIGHT
        assert await left.takes() == TO_LEFT


@without_waiting
async def test_waking_tells_the_transport_what_is_still_needed() -> None:
    async with sides() as (left, _right):
        assert left.transport.retained == {left.transport.link.address}
        left.device.remove_peer(left.peer.public_key)
        left.tunnel.wake()
        assert left.transport.retained == set()


@pytest.mark.parametrize("headroom", [0, 10])
def test_offloads_follow_the_peers_profiles(headroom: int) -> None:
    @without_waiting
    async def scenario() -> None:
        async with sides(headroom=headroom) as (left, _right):
            assert not left.tun.offloads
            if not headroom:
                return
            left.peer.set_profile(Profile.GSO)
            left.tunnel.wake()
            assert left.tun.offloads
            assert left.tunnel.statistics().offloads
            left.device.add_peer(THIRD, now=left.loop.time())
            left.tunnel.wake()
            assert not left.tun.offloads
            left.device.remove_peer(THIRD)
            left.tunnel.wake()
            assert left.tun.offloads
            left.device.remove_peer(left.peer.public_key)
            left.tunnel.wake()
            assert not left.tun.offloads

    scenario()


@without_waiting
async def test_super_packets_pass() -> None:
    async with sides(headroom=10, profile=Profile.GSO) as (left, right):
        packet = bytes(10) + ipv4_packet("10.0.0.1", "10.0.0.2", bytes(60_000))
        left.tun.inject(packet)
        assert await right.takes() == packet


def test_a_tun_that_refuses_super_packets_goes_on_without_offloads(caplog: pytest.LogCaptureFixture) -> None:
    """Linux 6.6.44 and 6.10.3. The peer still sends super-packets, and may be sent some."""
    tcp = ipv4_packet("10.0.0.1", "10.0.0.2", bytes(12) + b"\x50\x10" + bytes(6) + bytes(3000))
    packet = bytes([1, 1, 40, 0, 0xE8, 3, 20, 0, 16, 0]) + tcp[:9] + b"\x06" + tcp[10:]
    back = packet[:22] + packet[26:30] + packet[22:26] + packet[30:]

    @without_waiting
    async def scenario() -> None:
        async with sides(headroom=10, profile=Profile.GSO) as (left, right):
            await established(left, right)
            right.tun.refuses_super_packets = True
            right.tun.inject(back)  # it waits in the interface when the offloads are switched off
            for _ in range(2):
                left.tun.inject(packet)
                pieces = [await right.takes() for _ in range(3)]
                assert b"".join(piece[50:] for piece in pieces) == packet[50:]
                assert [piece[1] for piece in pieces] == [0, 0, 0]
            assert await left.takes() == back
            statistics = right.tunnel.statistics()
            assert (statistics.super_packets_refused, statistics.own_drops[TunnelDrop.KERNEL]) == (2, 0)
            assert statistics.own_drops[TunnelDrop.OFFLOADED] == 0
            for _ in range(2):
                assert not right.tun.offloads
                assert not right.tunnel.statistics().offloads
                right.tunnel.wake()
            assert left.tun.offloads

    with caplog.at_level(logging.WARNING):
        scenario()
    assert caplog.messages == ["the kernel refuses a well-formed super-packet: the offloads of memory0 are off"]


@without_waiting
async def test_an_interface_that_is_removed_ends_the_tunnel() -> None:
    async with sides() as (left, _right):
        left.tun.remove()
        with pytest.raises(TunGoneError):
            await left.tunnel.wait_ended()
        left.tunnel.wake()  # does no harm
        await turns()


@without_waiting
async def test_closing_ends_it_in_peace() -> None:
    async with sides() as (left, right):
        await established(left, right)
        waiting = asyncio.ensure_future(left.tunnel.wait_ended())
        await turns()
        assert not waiting.done()
        await left.tunnel.aclose()
        await waiting
        await left.tunnel.aclose()


@without_waiting
async def test_without_anybody_to_tell() -> None:
    transports = MemoryTransport.pair()
    side = Side("alone", transports[0], 0)
    async with Tunnel(side.device, side.tun, side.transport, clock=side.loop.time) as tunnel:
        side.tun.inject(TO_RIGHT)
        await turns()
        assert sum(tunnel.statistics().device.drops.values()) == 1
