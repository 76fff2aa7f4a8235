from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.effort import effort
from wgvsock.addresses import Address, Cid, Port, VsockAddress
from wgvsock.errors import TransportError
from wgvsock.uapi.control import DeviceControl
from wgvsock.uapi.endpoints import Carrier, EndpointText
from wgvsock.uapi.errors import UapiError
from wgvsock.uapi.protocol import NO_KEY, AllowedIpChange, DeviceChange, PeerChange
from wgvsock.wireguard import Device, generate_private_key, public_key

NOW = 1000.0
OURS = bytes([0xFF] * 32)
OURS_CLAMPED = bytes([0xF8] + [0xFF] * 30 + [0x7F])
PEER = public_key(generate_private_key(lambda size: b"\x01" * size))
OTHER = public_key(generate_private_key(lambda size: b"\x02" * size))
PSK = b"\x03" * 32
NET = ipaddress.ip_network("10.0.0.0/24")
NET6 = ipaddress.ip_network("fd00::/64")


@dataclass
class FakeSockets:
    listen_port: int = 0
    fwmark: int = 0
    taken: set[int] = field(default_factory=set)
    moves: int = 0

    async def set_listen_port(self, port: int) -> None:
        if port in self.taken:
            raise TransportError("cannot listen", why="Address already in use")
        self.listen_port = port
        self.moves += 1

    def set_fwmark(self, mark: int) -> None:
        if mark in self.taken:
            raise TransportError("cannot mark", why="Operation not permitted")
        self.fwmark = mark


@dataclass(frozen=True)
class FakeLink:
    address: Address


class Fixture:
    def __init__(self) -> None:
        counter = iter(range(1, 1 << 20))
        self.device = Device(
            random=lambda size: next(counter).to_bytes(4, "little").ljust(size, b"\0")[:size], wall_clock=lambda: 0
        )
        self.sockets = FakeSockets()
        self.changes = 0
        self.control = DeviceControl(
            self.device,
            self.sockets,
            EndpointText(Carrier.VSOCK),
            clock=lambda: NOW,
            on_changed=self.changed,
        )

    def changed(self) -> None:
        self.changes += 1

    async def set(self, *peers: PeerChange, **device: object) -> None:
        await self.control.apply(DeviceChange(peers=peers, **device))  # type: ignore[arg-type]


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


@pytest.mark.asyncio
async def test_device_settings_are_read_back(fixture: Fixture) -> None:
    await fixture.set(private_key=OURS, listen_port=51820, fwmark=7)
    state = await fixture.control.state()
    assert (state.private_key, state.listen_port, state.fwmark) == (OURS_CLAMPED, 51820, 7)
    assert fixture.device.public_key == public_key(OURS)
    assert fixture.changes == 1


@pytest.mark.asyncio
async def test_zeros_take_the_private_key_away(fixture: Fixture) -> None:
    assert (await fixture.control.state()).private_key is None
    await fixture.set(private_key=OURS)
    await fixture.set(private_key=NO_KEY)
    assert (await fixture.control.state()).private_key is None
    assert fixture.device.public_key is None


@pytest.mark.asyncio
async def test_peer_settings_are_read_back(fixture: Fixture) -> None:
    await fixture.set(
        PeerChange(
            PEER,
            preshared_key=PSK,
            endpoint="6:51820",
            persistent_keepalive=25,
            allowed_ips=(AllowedIpChange(NET), AllowedIpChange(NET6)),
        )
    )
    (peer,) = (await fixture.control.state()).peers
    assert (peer.public_key, peer.preshared_key, peer.endpoint) == (PEER, PSK, "0.0.0.6:51820")
    assert (peer.persistent_keepalive, peer.allowed_ips) == (25, (NET, NET6))
    assert (peer.last_handshake, peer.rx_bytes, peer.tx_bytes) == (0, 0, 0)
    assert fixture.device.peers[PEER].endpoint == VsockAddress(Cid(6), Port(51820))


@pytest.mark.asyncio
async def test_what_is_not_named_stays(fixture: Fixture) -> None:
    await fixture.set(PeerChange(PEER, preshared_key=PSK, endpoint="6:1", allowed_ips=(AllowedIpChange(NET),)))
    await fixture.set(PeerChange(PEER, allowed_ips=(AllowedIpChange(NET6),)))
    (peer,) = (await fixture.control.state()).peers
    assert (peer.preshared_key, peer.endpoint, peer.allowed_ips) == (PSK, "0.0.0.6:1", (NET, NET6))


@pytest.mark.asyncio
async def test_zeros_take_the_preshared_key_away(fixture: Fixture) -> None:
    await fixture.set(PeerChange(PEER, preshared_key=PSK))
    await fixture.set(PeerChange(PEER, preshared_key=NO_KEY))
    assert (await fixture.control.state()).peers[0].preshared_key == NO_KEY


@pytest.mark.asyncio
async def test_allowed_ips_are_replaced_or_taken_away_one_by_one(fixture: Fixture) -> None:
    await fixture.set(PeerChange(PEER, allowed_ips=(AllowedIpChange(NET), AllowedIpChange(NET6))))
    await fixture.set(PeerChange(PEER, allowed_ips=(AllowedIpChange(NET, remove=True),)))
    assert (await fixture.control.state()).peers[0].allowed_ips == (NET6,)
    await fixture.set(PeerChange(PEER, allowed_ips=(AllowedIpChange(NET, remove=True),)))
    assert (await fixture.control.state()).peers[0].allowed_ips == (NET6,)
    await fixture.set(PeerChange(PEER, replace_allowed_ips=True, allowed_ips=(AllowedIpChange(NET),)))
    assert (await fixture.control.state()).peers[0].allowed_ips == (NET,)


@pytest.mark.asyncio
async def test_the_same_allowed_ips_again_change_nothing_but_one_that_is_taken_back_goes(fixture: Fixture) -> None:
    both = (AllowedIpChange(NET), AllowedIpChange(NET6))
    await fixture.set(PeerChange(PEER, allowed_ips=both))
    await fixture.set(PeerChange(PEER, replace_allowed_ips=True, allowed_ips=both))
    assert fixture.device.peers[PEER].allowed_ips == (NET, NET6)
    await fixture.set(
        PeerChange(PEER, replace_allowed_ips=True, allowed_ips=(both[0], AllowedIpChange(NET6, remove=True)))
    )
    assert fixture.device.peers[PEER].allowed_ips == (NET,)


@pytest.mark.asyncio
async def test_an_allowed_ip_moves_to_the_peer_that_is_given_it_last(fixture: Fixture) -> None:
    await fixture.set(
        PeerChange(PEER, allowed_ips=(AllowedIpChange(NET),)), PeerChange(OTHER, allowed_ips=(AllowedIpChange(NET),))
    )
    assert [peer.allowed_ips for peer in (await fixture.control.state()).peers] == [(), (NET,)]


@pytest.mark.asyncio
async def test_peers_are_removed_replaced_and_updated_only_if_there(fixture: Fixture) -> None:
    await fixture.set(PeerChange(PEER, update_only=True))
    assert not fixture.device.peers
    await fixture.set(PeerChange(PEER))
    await fixture.set(PeerChange(PEER, update_only=True, persistent_keepalive=9))
    assert fixture.device.peers[PEER].persistent_keepalive == 9
    await fixture.set(PeerChange(OTHER), replace_peers=True)
    assert list(fixture.device.peers) == [OTHER]
    await fixture.set(PeerChange(OTHER, remove=True), PeerChange(PEER, remove=True))
    assert not fixture.device.peers


@pytest.mark.asyncio
async def test_our_own_public_key_is_passed_over(fixture: Fixture) -> None:
    await fixture.set(PeerChange(public_key(OURS)), PeerChange(PEER), private_key=OURS)
    assert list(fixture.device.peers) == [PEER]


@pytest.mark.asyncio
async def test_the_same_private_key_again_keeps_the_sessions(fixture: Fixture) -> None:
    await fixture.set(private_key=OURS)
    identity = fixture.device.identity
    await fixture.set(private_key=OURS_CLAMPED)
    assert fixture.device.identity is identity


@pytest.mark.asyncio
async def test_the_same_port_again_keeps_the_sockets(fixture: Fixture) -> None:
    await fixture.set(listen_port=51820)
    await fixture.set(listen_port=51820)
    assert fixture.sockets.moves == 1


@pytest.mark.asyncio
async def test_a_link_shows_its_address(fixture: Fixture) -> None:
    await fixture.set(PeerChange(PEER))
    assert (await fixture.control.state()).peers[0].endpoint is None
    fixture.device.peers[PEER].set_endpoint(FakeLink(VsockAddress(Cid(16), Port(9))))
    assert (await fixture.control.state()).peers[0].endpoint == "0.0.0.16:9"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("peer", "device", "number"),
    [
        (PeerChange(PEER, endpoint="51820"), {}, errno.EINVAL),
        (PeerChange(PEER, endpoint="6:65540"), {}, errno.EINVAL),
        (PeerChange(PEER), {"listen_port": 22}, errno.EADDRINUSE),
        (PeerChange(PEER), {"fwmark": 22}, errno.EADDRINUSE),
    ],
)
async def test_a_refused_request_changes_nothing(
    fixture: Fixture, peer: PeerChange, device: dict[str, int], number: int
) -> None:
    fixture.sockets.taken = {22}
    await fixture.set(PeerChange(OTHER, persistent_keepalive=5), private_key=OURS, listen_port=1)
    before, changes = await fixture.control.state(), fixture.changes
    with pytest.raises(UapiError) as caught:
        await fixture.set(PeerChange(OTHER, remove=True), peer, private_key=NO_KEY, replace_peers=True, **device)
    assert caught.value.errno == number
    assert (await fixture.control.state()) == before
    assert fixture.changes == changes


@pytest.mark.asyncio
async def test_a_peer_with_an_unusable_key_can_be_removed(fixture: Fixture) -> None:
    await fixture.set(PeerChange(bytes(32), remove=True))
    assert not fixture.device.peers


# --- many peers ---


@pytest.mark.asyncio
async def test_a_peer_with_an_unusable_key_is_taken_as_any_other(fixture: Fixture) -> None:
    """Kernel and wireguard-go accept it, as does a `wg setconf` that lists it among others. It is never heard of."""
    await fixture.set(PeerChange(bytes(32), allowed_ips=(AllowedIpChange(NET),)), PeerChange(PEER), private_key=OURS)
    assert list(fixture.device.peers) == [bytes(32), PEER]
    assert fixture.device.peers[bytes(32)].allowed_ips == (NET,)
    await fixture.set(PeerChange(bytes(32), endpoint="6:1", persistent_keepalive=1))
    fixture.device.handle_timers(NOW)
    assert fixture.device.datagrams_to_send() == []


def many(count: int, **settings: object) -> list[PeerChange]:
    """Peers with two networks each."""
    return [
        PeerChange(
            (number + 2).to_bytes(32, "little"),
            allowed_ips=(
                AllowedIpChange(ipaddress.ip_network((0x0B000000 + number, 32))),
                AllowedIpChange(ipaddress.ip_network((0x0C000000 + (number << 8), 24))),
            ),
            **settings,  # type: ignore[arg-type]
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("what", ["get", "replace peers", "replace allowed IPs", "remove allowed IPs", "remove peers"])
def test_the_effort_grows_with_the_number_of_peers_and_not_with_its_square(what: str) -> None:
    def cost(count: int) -> int:
        fixture = Fixture()
        peers = many(count)
        asyncio.run(fixture.set(*peers))
        match what:
            case "get":
                return effort(lambda: asyncio.run(fixture.control.state()))
            case "replace peers":
                return effort(lambda: asyncio.run(fixture.set(*peers, replace_peers=True)))
            case "replace allowed IPs":
                changed = many(count, replace_allowed_ips=True)
            case "remove allowed IPs":
                changed = [
                    replace(peer, allowed_ips=tuple(replace(ip, remove=True) for ip in peer.allowed_ips))
                    for peer in peers
                ]
            case _:
                changed = many(count, remove=True)
        return effort(lambda: asyncio.run(fixture.set(*changed)))

    few, some = cost(20), cost(40)
    each = (some - few) / 20
    assert cost(400) == pytest.approx(some + 360 * each, rel=0.05)


class Watching:
    """A clock that ends every turn at once, so that the device is inspected between two pieces of work."""

    def __init__(self, fixture: Fixture, look: Callable[[], object]) -> None:
        self.now = NOW
        self.look = look
        self.seen: list[object] = []
        fixture.control = DeviceControl(
            fixture.device,
            fixture.sockets,
            EndpointText(Carrier.VSOCK),
            clock=self.clock,
            on_changed=fixture.changed,
        )

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    async def during(self, work: Coroutine[None, None, None]) -> list[object]:
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.sleep(0)
            self.seen.append(self.look())
        await task
        return self.seen


@pytest.mark.asyncio
async def test_others_have_their_turn_while_peers_are_replaced_and_routes_never_vanish(fixture: Fixture) -> None:
    peers = many(30)
    await fixture.set(*peers, PeerChange(OTHER))
    addresses = [address for number in range(30) for address in (bytes([11, 0, 0, number]), bytes([12, 0, number, 9]))]

    def routes() -> tuple[bytes, ...]:
        owners = [fixture.device.allowed_ips.lookup(address) for address in addresses]
        return tuple(owner.public_key for owner in owners if owner is not None)

    before = routes()
    watching = Watching(fixture, routes)
    old = dict(fixture.device.peers)
    seen = await watching.during(fixture.set(*peers, replace_peers=True))
    assert len(seen) > 30
    assert set(seen) == {before}
    assert list(fixture.device.peers) == [peer.public_key for peer in peers]
    assert not any(fixture.device.peers[key] is peer for key, peer in old.items() if key != OTHER), "new ones"


@pytest.mark.asyncio
async def test_allowed_ips_that_stay_are_there_all_the_time(fixture: Fixture) -> None:
    stays = tuple(AllowedIpChange(ipaddress.ip_network((0x0B000000 + number, 32))) for number in range(20))
    goes = tuple(AllowedIpChange(ipaddress.ip_network((0x0C000000 + number, 32))) for number in range(20))
    await fixture.set(PeerChange(PEER, allowed_ips=goes + stays))
    watching = Watching(fixture, lambda: fixture.device.allowed_ips.lookup(bytes([11, 0, 0, 7])))
    seen = await watching.during(fixture.set(PeerChange(PEER, replace_allowed_ips=True, allowed_ips=stays[::-1])))
    assert len(seen) > 30
    assert set(seen) == {fixture.device.peers[PEER]}
    assert fixture.device.peers[PEER].allowed_ips == tuple(change.network for change in reversed(stays))
