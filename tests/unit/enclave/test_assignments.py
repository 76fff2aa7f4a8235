"""Assignments set up, activated, retired, displaced and rolled back, on a kernel in memory and a real core."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from wgvsock.enclave.assignments import Assignments, Stream
from wgvsock.enclave.network import EnclaveNetwork
from wgvsock.provisioning import PROFILE_GSO, RETIREMENT, Assignment
from wgvsock.runtime.journal import Journal, Place
from wgvsock.system import resolver
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.testing import SeededRandom, without_waiting
from wgvsock.testing.kernel import MemoryKernel
from wgvsock.testing.provisioning import TUNNEL_CONFIG
from wgvsock.wireguard import Device, HandshakeCompleted, Profile, generate_private_key
from wgvsock.wireguard.primitives import public_key

FIRST = Assignment(public_key(b"\x11" * 32), b"p" * 32, TUNNEL_CONFIG, incarnation=1)
SUCCESSOR = replace(FIRST, relay_public_key=public_key(b"\x22" * 32), preshared_key=b"q" * 32)
"""Of the same relay's process."""
YOUNGER = replace(SUCCESSOR, incarnation=2)


@dataclass(eq=False)
class FakeStream:
    connected: bool = True
    closed_because: list[str] = field(default_factory=list)

    def close(self, why: str) -> None:
        self.connected = False
        self.closed_because.append(why)


class Enclave:
    """What `Assignments` works on."""

    def __init__(self, folder: Path) -> None:
        random = SeededRandom("enclave")
        self.now = 100.0
        self.kernel = MemoryKernel()
        self.device = Device(random=random, wall_clock=lambda: 0, packet_headroom=10)
        self.device.set_private_key(generate_private_key(random), self.now)
        self.active: Assignment | None = None
        self.streams: dict[Hashable, FakeStream] = {}
        self.woken = 0
        journal = Journal(str(folder / "run"), "test", resolver.performers(), place=Place("boot", "net:[1]"))
        journal.open()
        self.network = EnclaveNetwork(cast("Any", self.kernel), journal, "wg0", 500, "")
        self.assignments = Assignments(
            self.device,
            self.network,
            link_for=self._link_for,
            active=lambda: self.active,
            clock=lambda: self.now,
            wake=self._wake,
        )

    def _link_for(self, endpoint: object) -> Stream | None:
        return self.streams.get(endpoint)

    def _wake(self) -> None:
        self.woken += 1

    async def activate(self, assignment: Assignment) -> None:
        """Set an assignment up and let its relay prove itself."""
        replaced = self.active
        await self.assignments.apply(assignment, replaced)
        self.active = assignment
        await self.assignments.activate(assignment, replaced)

    def connect(self, assignment: Assignment) -> FakeStream:
        """The stream of an assignment's peer."""
        stream = FakeStream()
        self.device.peers[assignment.relay_public_key].endpoint = stream
        self.streams[stream] = stream
        return stream


@pytest.fixture
def enclave(tmp_path: Path) -> Enclave:
    return Enclave(tmp_path)


@without_waiting
async def test_the_first_assignment(enclave: Enclave) -> None:
    assert await enclave.assignments.apply(FIRST, None) == enclave.now
    peer = enclave.device.peers[FIRST.relay_public_key]
    assert enclave.kernel.addresses["wg0"] == list(TUNNEL_CONFIG.addresses)
    assert enclave.kernel.routes["wg0"]
    assert peer.allowed_ips == TUNNEL_CONFIG.allowed_ips
    assert peer.profile is Profile.PLAIN
    assert enclave.woken == 1


@without_waiting
async def test_a_kernel_that_refuses_leaves_no_peer(enclave: Enclave) -> None:
    enclave.kernel.refuses.add("set_routes")
    with pytest.raises(NetlinkSetupError):
        await enclave.assignments.apply(FIRST, None)
    assert not enclave.device.peers


@without_waiting
async def test_a_successor_displaces_nothing_before_it_is_proved(enclave: Enclave) -> None:
    await enclave.activate(FIRST)
    await enclave.assignments.apply(SUCCESSOR, FIRST)
    peers = enclave.device.peers
    assert peers[FIRST.relay_public_key].allowed_ips == TUNNEL_CONFIG.allowed_ips
    assert peers[SUCCESSOR.relay_public_key].allowed_ips == ()


@without_waiting
async def test_a_proved_successor_takes_over_and_the_old_peer_retires(enclave: Enclave) -> None:
    await enclave.activate(FIRST)
    fast = replace(SUCCESSOR, config=replace(TUNNEL_CONFIG, capabilities=(PROFILE_GSO,), persistent_keepalive=7))
    await enclave.activate(fast)
    peers = enclave.device.peers
    assert (peers[FIRST.relay_public_key].allowed_ips, peers[fast.relay_public_key].allowed_ips) == (
        (),
        TUNNEL_CONFIG.allowed_ips,
    )
    assert (peers[fast.relay_public_key].profile, peers[fast.relay_public_key].persistent_keepalive) == (Profile.GSO, 7)
    await asyncio.sleep(RETIREMENT - 0.1)
    assert len(peers) == 2, "packets that were sent before the change are still accepted"
    await asyncio.sleep(0.2)
    assert list(enclave.device.peers) == [fast.relay_public_key]


@without_waiting
async def test_a_peer_that_is_active_again_does_not_retire(enclave: Enclave) -> None:
    for assignment in (FIRST, SUCCESSOR, FIRST):
        await enclave.activate(assignment)
    await asyncio.sleep(RETIREMENT + 1)
    assert list(enclave.device.peers) == [FIRST.relay_public_key]


@without_waiting
async def test_nothing_happens_after_the_end(enclave: Enclave) -> None:
    await enclave.activate(FIRST)
    await enclave.activate(SUCCESSOR)
    enclave.assignments.close()
    await asyncio.sleep(RETIREMENT + 1)
    assert len(enclave.device.peers) == 2


@pytest.mark.parametrize("stream", ["its own", "gone", "the other's"])
@without_waiting
async def test_a_younger_relay_displaces_the_older_at_once(
    enclave: Enclave, caplog: pytest.LogCaptureFixture, stream: str
) -> None:
    await enclave.activate(FIRST)
    older = enclave.connect(FIRST)
    if stream == "gone":
        enclave.streams.clear()
    await enclave.assignments.apply(YOUNGER, FIRST)
    enclave.device.peers[YOUNGER.relay_public_key].endpoint = older if stream == "the other's" else "its own"
    await enclave.assignments.activate(YOUNGER, FIRST)
    assert list(enclave.device.peers) == [YOUNGER.relay_public_key]
    assert older.closed_because == (["another relay is served now"] if stream == "its own" else [])
    assert "another relay has replaced" in caplog.text


@without_waiting
async def test_the_same_key_with_another_secret_is_the_same_peer(enclave: Enclave) -> None:
    await enclave.activate(FIRST)
    again = replace(FIRST, preshared_key=b"n" * 32)
    await enclave.assignments.apply(again, FIRST)
    (peer,) = enclave.device.peers.values()
    assert peer.preshared_key == b"n" * 32
    await enclave.assignments.roll_back(again, FIRST)
    assert peer.preshared_key == FIRST.preshared_key
    await enclave.assignments.activate(again, FIRST)
    await asyncio.sleep(RETIREMENT + 1)
    assert list(enclave.device.peers.values()) == [peer], "nobody retires"


@without_waiting
async def test_a_first_assignment_that_nobody_proves_leaves_nothing(enclave: Enclave) -> None:
    await enclave.assignments.apply(FIRST, None)
    await enclave.assignments.roll_back(FIRST, None)
    assert not enclave.device.peers
    assert (enclave.kernel.addresses["wg0"], enclave.kernel.routes["wg0"]) == ([], [])


@without_waiting
async def test_a_successor_that_nobody_proves_leaves_what_was(enclave: Enclave) -> None:
    await enclave.activate(FIRST)
    await enclave.assignments.apply(SUCCESSOR, FIRST)
    await enclave.assignments.roll_back(SUCCESSOR, FIRST)
    assert list(enclave.device.peers) == [FIRST.relay_public_key]
    assert enclave.kernel.addresses["wg0"] == list(TUNNEL_CONFIG.addresses)


@without_waiting
async def test_a_kernel_that_refuses_later_is_logged(enclave: Enclave, caplog: pytest.LogCaptureFixture) -> None:
    await enclave.activate(FIRST)
    enclave.kernel.refuses.add("set_routes")
    await enclave.activate(SUCCESSOR)
    assert "part of the network is not set up" in caplog.text
    assert enclave.device.peers[SUCCESSOR.relay_public_key].allowed_ips == TUNNEL_CONFIG.allowed_ips


@without_waiting
async def test_a_handshake_that_began_before_proves_nothing(enclave: Enclave) -> None:
    await enclave.assignments.apply(FIRST, None)
    (peer,) = enclave.device.peers.values()
    handshake = HandshakeCompleted(peer, initiator=False, duration=0.5)
    enclave.now += 0.4
    assert not enclave.assignments.is_proved_by(handshake)
    enclave.now += 0.1
    assert enclave.assignments.is_proved_by(handshake)


@without_waiting
async def test_what_is_known_of_the_active_relay(enclave: Enclave) -> None:
    told = enclave.assignments
    assert (told.last_authenticated(), told.relay_connected()) == (float("-inf"), False)
    await enclave.activate(FIRST)
    assert (told.last_authenticated(), told.relay_connected()) == (float("-inf"), False)
    stream = enclave.connect(FIRST)
    assert told.relay_connected()
    stream.connected = False
    assert not told.relay_connected()
    enclave.streams.clear()
    assert not told.relay_connected()
