import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest

from wgvsock.testing import ManualClock, MemoryTransport, MemoryTun, SeededRandom, without_waiting
from wgvsock.testing.echo import answer
from wgvsock.tunnel.path import Path
from wgvsock.tunnel.probe import FAILURES, INTERVAL, TIMEOUT, PathProbe
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.wireguard import Device, Event, HandshakeFailed, Profile, generate_private_key, public_key

OURS, THEIRS = ip_address("10.73.0.1"), ip_address("10.73.0.2")

ALL_PROFILES = pytest.mark.parametrize(
    ("headroom", "profile"), [(0, Profile.PLAIN), (10, Profile.PLAIN), (10, Profile.GSO)], ids=str
)


class End:
    """One end of a tunnel, in memory."""

    def __init__(self, name: str, transport: MemoryTransport, headroom: int) -> None:
        random = SeededRandom(name)
        self.transport = transport
        self.tun = MemoryTun(headroom)
        self.device = Device(random=random, wall_clock=ManualClock().wall_clock, packet_headroom=headroom)
        self.private_key = generate_private_key(random)
        self.clock = asyncio.get_running_loop().time
        self.events: list[Event] = []
        self.tunnel = Tunnel(self.device, self.tun, transport, clock=self.clock, on_event=self.events.append)

    def know(self, other: "End", address: str, profile: Profile, *, dials: bool) -> None:
        self.device.set_private_key(self.private_key, self.clock())
        self.device.add_peer(
            public_key(other.private_key),
            allowed_ips=[ip_network(address)],
            endpoint=self.transport.link.address if dials else None,
            profile=profile,
            now=self.clock(),
        )


class Rig:
    """A relay with its path, and an enclave with a kernel that answers echo while it is told to."""

    def __init__(self, headroom: int, profile: Profile) -> None:
        transports = MemoryTransport.pair()
        self.headroom = headroom
        self.relay, self.enclave = End("relay", transports[0], headroom), End("enclave", transports[1], headroom)
        self.relay.know(self.enclave, f"{THEIRS}/32", profile, dials=True)
        self.enclave.know(self.relay, "0.0.0.0/0", profile, dials=False)
        self.path = Path(PathProbe(SeededRandom("probe"), headroom), self.relay.tunnel, self.relay.clock)
        self.kernel_answers: Callable[[], bool] = lambda: True
        self.requests: list[bytes] = []

    async def kernel(self) -> None:
        while True:
            while (packet := self.enclave.tun.take()) is not None:
                self.requests.append(packet)
                if self.kernel_answers():
                    self.enclave.tun.inject(answer(packet, self.headroom))
            await asyncio.sleep(0.002)

    def begin(self) -> None:
        self.path.begin(OURS, THEIRS, "i-1-enc1")

    async def asked_in_vain(self) -> asyncio.Task[float | None]:
        """The path is alive, and then a caller gets no reply."""
        self.begin()
        await self.until(alive=True)
        self.kernel_answers = lambda: False
        asking = asyncio.ensure_future(self.path.ask())
        await asyncio.sleep(0.01)
        return asking

    async def until(self, alive: bool | None, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while self.path.snapshot().alive is not alive:  # noqa: ASYNC110 - it is a figure, not an event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def rig(headroom: int = 0, profile: Profile = Profile.PLAIN) -> AsyncIterator[Rig]:
    made = Rig(headroom, profile)
    async with made.relay.tunnel, made.enclave.tunnel:
        next(iter(made.relay.device.peers.values())).initiate_handshake(made.relay.clock())
        made.relay.tunnel.wake()
        await asyncio.sleep(0.01)
        tasks = [asyncio.ensure_future(made.kernel()), asyncio.ensure_future(made.path.run())]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@ALL_PROFILES
def test_the_reply_is_measured_and_kept_from_the_kernel(headroom: int, profile: Profile) -> None:
    @without_waiting
    async def scenario() -> None:
        async with rig(headroom, profile) as made:
            assert made.path.snapshot().alive is None
            made.begin()
            await made.until(alive=True)
            await asyncio.sleep(3 * INTERVAL)
            snapshot = made.path.snapshot()
            assert snapshot.lost == 0
            assert snapshot.sent == len(made.requests) >= 3
            assert snapshot.last is not None
            assert 0 < snapshot.last <= 0.01
            assert made.relay.tun.take() is None

    scenario()


@without_waiting
async def test_nothing_is_asked_before_there_is_a_session_and_after_it() -> None:
    async with rig() as made:
        await asyncio.sleep(3 * INTERVAL)
        assert made.path.destination is None
        assert await made.path.ask() is None
        assert made.requests == []
        made.begin()
        assert made.path.destination == THEIRS
        await made.until(alive=True)
        made.path.end()
        count = len(made.requests)
        await asyncio.sleep(3 * INTERVAL)
        assert len(made.requests) == count
        assert made.path.snapshot().alive is None


@without_waiting
async def test_a_path_dies_and_comes_back() -> None:
    async with rig() as made:
        made.begin()
        await made.until(alive=True)
        made.kernel_answers = lambda: False
        begun = made.relay.clock()
        await made.until(alive=False)
        assert made.relay.clock() - begun < INTERVAL + FAILURES * TIMEOUT + 0.1
        made.kernel_answers = lambda: True
        begun = made.relay.clock()
        await made.until(alive=True)
        assert made.relay.clock() - begun < TIMEOUT + 0.1


@without_waiting
async def test_only_our_reply_is_taken_while_one_is_waited_for() -> None:
    async with rig() as made:
        made.kernel_answers = lambda: False
        made.begin()
        await asyncio.sleep(0.01)
        request = made.requests[0]
        operators = bytearray(request)
        operators[24] ^= 0xFF  # the identifier of another ping
        made.enclave.tun.inject(answer(bytes(operators)))
        made.enclave.tun.inject(answer(request))
        await asyncio.sleep(0.01)
        assert made.relay.tun.take() == answer(bytes(operators))
        assert made.relay.tun.take() is None
        assert made.path.snapshot().last is not None
        made.enclave.tun.inject(answer(request))  # nobody waits for a second one: the kernel knows what to do with it
        await asyncio.sleep(0.01)
        assert made.relay.tun.take() == answer(request)


@without_waiting
async def test_nobody_looks_at_packets_while_no_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as made:
        probe_looked: list[int] = []
        take = PathProbe.take

        def looked(self: PathProbe, packet: memoryview, now: float) -> bool:
            probe_looked.append(len(packet))
            return take(self, packet, now)

        monkeypatch.setattr(PathProbe, "take", looked)
        made.begin()
        await made.until(alive=True)
        for _ in range(50):
            made.enclave.tun.inject(answer(made.requests[0]))
            await asyncio.sleep(0.01)
        assert len(probe_looked) == 1
        made.kernel_answers = lambda: False
        assert await made.path.ask() is None
        await asyncio.sleep(0.01)
        count = len(probe_looked)
        made.enclave.tun.inject(answer(made.requests[0]))
        await asyncio.sleep(0.01)
        assert len(probe_looked) == count


@without_waiting
async def test_somebody_asks_and_gets_the_time_of_his_own_request() -> None:
    async with rig() as made:
        made.begin()
        await made.until(alive=True)
        times = await asyncio.gather(*(made.path.ask() for _ in range(3)))
        assert all(seconds is not None and 0 < seconds <= 0.01 for seconds in times)
        made.kernel_answers = lambda: False
        begun = made.relay.clock()
        assert await made.path.ask() is None
        assert made.relay.clock() - begun == pytest.approx(TIMEOUT, abs=0.1)


@without_waiting
async def test_who_asks_is_told_when_the_session_ends() -> None:
    async with rig() as made:
        asking = await made.asked_in_vain()
        made.path.end()
        assert await asking is None


@without_waiting
async def test_who_asks_may_leave() -> None:
    async with rig() as made:
        asking = await made.asked_in_vain()
        asking.cancel()
        made.kernel_answers = lambda: True
        assert await made.path.ask() is not None


@without_waiting
async def test_who_leaves_in_the_turn_of_his_answer_breaks_nothing() -> None:
    async with rig() as made:
        asking = await made.asked_in_vain()
        asking.cancel()
        made.path.end()
        with pytest.raises(asyncio.CancelledError):
            await asking


@without_waiting
async def test_packets_of_the_enclave_prove_its_path() -> None:
    async with rig() as made:
        made.kernel_answers = lambda: False
        made.begin()
        await asyncio.sleep(0.1)
        assert made.path.snapshot().alive is None
        made.enclave.tun.inject(answer(made.requests[0])[:24] + bytes(20))
        await asyncio.sleep(0.01)
        assert made.path.snapshot().alive is True


@without_waiting
async def test_a_request_takes_no_packets_place_while_there_is_no_session() -> None:
    async with rig() as made:
        relay = made.relay
        peer = next(iter(relay.device.peers.values()))
        peer.expire_session()
        relay.transport.severed = True
        made.begin()
        await asyncio.sleep(3 * TIMEOUT)
        assert made.path.snapshot().sent >= FAILURES
        assert peer.statistics().staged_packets == 0
        relay.transport.severed = False
        await made.until(alive=True)  # it asked for the session that it needs


@without_waiting
async def test_a_handshake_without_an_answer_is_given_up_though_requests_want_one() -> None:
    async with rig() as made:
        made.begin()
        await made.until(alive=True)
        made.relay.transport.severed = True
        await asyncio.sleep(180 + 90 + 10)  # REJECT_AFTER_TIME and REKEY_ATTEMPT_TIME
        assert any(isinstance(event, HandshakeFailed) for event in made.relay.events)
        assert made.relay.transport.link.closed == ["the peer does not answer handshakes"]
