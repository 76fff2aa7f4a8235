"""Who is the peer, whether the tunnel is alive, and how one peer replaces another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.nsm.attested import attested_enclave
from wgvsock.addresses import UnixAddress
from wgvsock.attestation.binding import encode_x25519_spki
from wgvsock.attestation.errors import PublicKeyError, RejectedDocumentError
from wgvsock.attestation.policy import Expectations
from wgvsock.attestation.verifier import VerifiedDocument, check_binding
from wgvsock.provisioning import RETIREMENT
from wgvsock.relay.enclaves.session import SILENT_KEEPALIVES, PeerSettings, Session
from wgvsock.relay.errors import HandshakeTimeoutError
from wgvsock.testing import ManualClock, SeededRandom, without_waiting
from wgvsock.wireguard import Device, EndpointChanged, HandshakeCompleted, Profile
from wgvsock.wireguard.primitives import generate_private_key, public_key

OWN_PRIVATE_KEY = generate_private_key(SeededRandom("own"))
OWN_KEY = public_key(OWN_PRIVATE_KEY)
P = 2**255 - 19
ORDER_8 = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")  # RFC 7748, section 6.1
KEYS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([OWN_KEY, OWN_KEY[:31] + bytes((OWN_KEY[31] | 0x80,)), ORDER_8, b"\xff" * 32]),
    st.sampled_from([0, 1, P - 1, P, P + 1, 2**255, 2**255 + 1, 2**255 + P]).map(lambda n: n.to_bytes(32, "little")),
)
"""Any, and the peculiar ones: the relay's own in two encodings, points of low order, unreduced numbers."""

ADDRESS = UnixAddress("/enclave")
SETTINGS = PeerSettings(ADDRESS, (ip_network("10.73.0.2/32"),), 25, Profile.PLAIN)


class Link:
    """The stream to the enclave, as the test wants it."""

    def __init__(self) -> None:
        self.connected = self.authenticated = True


class Relay:
    """A session with its own core."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.random = SeededRandom("session")
        self.link: Link | None = Link()
        self.woken = 0
        self.device = Device(random=self.random, wall_clock=ManualClock().wall_clock)
        self.session = Session(
            self.device,
            wake=self.wake,
            stream=lambda endpoint: self.link,
            clock=clock or asyncio.get_running_loop().time,
        )

    def wake(self) -> None:
        self.woken += 1

    def new_key(self) -> bytes:
        return generate_private_key(self.random)

    def install(self, enclave_key: bytes, preshared_key: bytes = b"p" * 32) -> None:
        self.session.install(attested_enclave(enclave_key), preshared_key, self.new_key(), SETTINGS)

    async def complete(self) -> None:
        """The peer proves its keys, half a second after they were installed, by a handshake of a quarter second."""
        await asyncio.sleep(0.5)
        peer: Any = self.session.peer
        peer.last_authenticated = asyncio.get_running_loop().time()
        self.session.on_event(HandshakeCompleted(peer, True, 0.25))


@pytest.fixture
def key() -> bytes:
    return public_key(b"\x11" * 32)


@pytest.fixture
def other() -> bytes:
    return public_key(b"\x22" * 32)


@without_waiting
async def test_the_attested_key_and_the_preshared_key_become_the_peer(key: bytes) -> None:
    relay = Relay()
    assert relay.session.lost_for() == 0.0
    relay.install(key)
    peer = relay.session.peer
    assert peer is not None
    assert (peer.public_key, peer.preshared_key, peer.endpoint) == (key, b"p" * 32, ADDRESS)
    assert peer.allowed_ips == SETTINGS.allowed_ips
    assert relay.device.datagrams_to_send()  # the handshake's initiation
    assert relay.woken
    assert not relay.session.is_established
    await relay.complete()
    assert await relay.session.establish(SETTINGS, 10) == 0.25
    assert relay.session.is_established
    assert relay.session.handshake_age == 0.0
    assert relay.session.handshake_seconds == 0.25


@without_waiting
async def test_a_key_of_low_order_is_refused_and_changes_nothing(key: bytes) -> None:
    """The core accepts it, as every WireGuard does. The relay has to detect it."""
    relay = Relay()
    relay.install(key)
    ours = relay.device.public_key
    unverified = attested_enclave(key)
    object.__setattr__(unverified, "wireguard_public_key", bytes(32))  # the verifier makes none with such a key
    with pytest.raises(PublicKeyError, match="small order"):
        relay.session.install(unverified, b"p" * 32, relay.new_key(), SETTINGS)
    assert list(relay.device.peers) == [key]
    assert relay.device.public_key == ours
    assert relay.session.peer is relay.device.peers[key]


@without_waiting
async def test_without_a_handshake_in_time_the_peer_is_removed(key: bytes) -> None:
    relay = Relay()
    relay.install(key)
    with pytest.raises(HandshakeTimeoutError) as caught:
        await relay.session.establish(SETTINGS, 10)
    assert caught.value.why == "no handshake was completed within 10 s"
    assert relay.session.peer is None
    assert not relay.device.peers
    assert relay.session.handshake_age == float("inf")


@without_waiting
async def test_a_handshake_that_began_under_earlier_keys_proves_nothing(key: bytes) -> None:
    relay = Relay()
    relay.install(key)
    peer: Any = relay.session.peer
    await asyncio.sleep(0.5)
    relay.session.on_event(HandshakeCompleted(peer, False, 0.75))
    assert not relay.session.is_established


@without_waiting
async def test_other_events_prove_nothing(key: bytes, other: bytes) -> None:
    relay = Relay()
    relay.install(key)
    stranger = relay.device.add_peer(other, now=0.0)
    peer: Any = relay.session.peer
    relay.session.on_event(HandshakeCompleted(stranger, True, 0.1))
    relay.session.on_event(EndpointChanged(peer, None, ADDRESS))
    assert not relay.session.is_established


@without_waiting
async def test_the_same_enclave_under_new_keys_is_the_same_peer(key: bytes) -> None:
    relay = Relay()
    relay.install(key)
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    before, ours = relay.session.peer, relay.device.public_key
    relay.install(key, b"q" * 32)
    assert relay.session.peer is before
    assert before is not None
    assert before.preshared_key == b"q" * 32
    assert before.allowed_ips == SETTINGS.allowed_ips
    assert relay.device.public_key != ours


@without_waiting
async def test_while_keys_are_renewed_the_session_before_goes_on(key: bytes) -> None:
    """A re-attestation makes no client unready, unless the new keys are not proved."""
    relay = Relay()
    relay.install(key)
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    relay.install(key, b"q" * 32)
    assert relay.session.is_established
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    assert relay.session.is_established
    relay.install(key, b"r" * 32)
    with pytest.raises(HandshakeTimeoutError):
        await relay.session.establish(SETTINGS, 10)
    assert not relay.session.is_established


@without_waiting
async def test_a_session_that_was_lost_goes_on_under_no_keys(key: bytes, other: bytes) -> None:
    relay = Relay()
    relay.install(key)
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    assert relay.link is not None
    relay.link.connected = False
    relay.install(other)
    relay.link.connected = True
    assert not relay.session.is_established


@without_waiting
async def test_another_enclave_takes_over_and_the_old_one_retires(key: bytes, other: bytes) -> None:
    relay = Relay()
    relay.install(key)
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    relay.install(other)
    assert set(relay.device.peers) == {key, other}
    assert relay.device.peers[key].allowed_ips == SETTINGS.allowed_ips  # nothing changes before the handshake
    await relay.complete()
    await relay.session.establish(SETTINGS, 10)
    assert relay.device.peers[other].allowed_ips == SETTINGS.allowed_ips
    await asyncio.sleep(RETIREMENT + 1)
    assert set(relay.device.peers) == {other}


@without_waiting
async def test_a_retiring_peer_that_returns_stays(key: bytes, other: bytes) -> None:
    relay = Relay()
    for enclave in (key, other, key):
        relay.install(enclave)
        await relay.complete()
        await relay.session.establish(SETTINGS, 10)
    await asyncio.sleep(RETIREMENT + 1)
    assert set(relay.device.peers) == {key}


@without_waiting
async def test_dropping_removes_retiring_peers_too(key: bytes, other: bytes) -> None:
    relay = Relay()
    for enclave in (key, other):
        relay.install(enclave)
        await relay.complete()
        await relay.session.establish(SETTINGS, 10)
    relay.session.drop("the test")
    assert not relay.device.peers
    await asyncio.sleep(RETIREMENT + 1)
    relay.session.drop("again")


@without_waiting
async def test_a_loss_is_counted_from_when_it_is_seen(key: bytes) -> None:
    relay = Relay()
    relay.install(key)
    await relay.complete()
    assert relay.link is not None
    assert relay.session.lost_for() == 0.0
    relay.link.connected = False
    assert 0.0 < relay.session.lost_for() < 0.001
    await asyncio.sleep(2)
    assert relay.session.lost_for() == pytest.approx(2)
    relay.link.connected, relay.link.authenticated = True, False
    assert relay.session.lost_for() == pytest.approx(2)  # a stream alone proves nothing
    relay.link.authenticated = True
    assert relay.session.lost_for() == 0.0
    relay.link = None
    assert relay.session.lost_for() > 0.0


@without_waiting
async def test_silence_is_a_loss_too(key: bytes) -> None:
    relay = Relay()
    relay.install(key)
    await relay.complete()
    await asyncio.sleep(SILENT_KEEPALIVES * SETTINGS.persistent_keepalive - 1)
    assert relay.session.lost_for() == 0.0
    await asyncio.sleep(2)
    assert relay.session.lost_for() > 0.0


@without_waiting
async def test_without_keepalives_silence_means_nothing(key: bytes) -> None:
    relay = Relay()
    relay.session.install(
        attested_enclave(key), bytes(32), relay.new_key(), PeerSettings(ADDRESS, (), 0, Profile.PLAIN)
    )
    await relay.complete()
    await asyncio.sleep(1000)
    assert relay.session.lost_for() == 0.0


@given(key=KEYS)
def test_whatever_key_the_verifier_lets_through_can_be_installed(key: bytes) -> None:
    """The core raises for the relay's own key and weak ones: after the verifier, a crash rather than a refusal."""
    expectations = Expectations(user_data=b"bound", wireguard_key_pcr=None, own_public_key=OWN_KEY)
    clock = ManualClock()
    document = VerifiedDocument("", datetime.now(UTC), {}, None, b"bound", encode_x25519_spki(key))
    try:
        accepted = check_binding(document, expectations)
    except RejectedDocumentError:
        return
    device = Device(random=SeededRandom("device"), wall_clock=clock.wall_clock)
    device.set_private_key(OWN_PRIVATE_KEY, clock.now)
    device.add_peer(accepted, preshared_key=b"p" * 32, now=clock.now).initiate_handshake(clock.now)
