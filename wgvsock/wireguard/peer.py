"""One remote identity: its handshake, keypairs, timers, staged packets and endpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from enum import Enum
from typing import TYPE_CHECKING

from wgvsock.addresses import IpNetwork
from wgvsock.errors import ConfigurationError
from wgvsock.wireguard import send
from wgvsock.wireguard.constants import KEY_SIZE, MAX_PERSISTENT_KEEPALIVE, MAX_STAGED_PACKETS
from wgvsock.wireguard.cookie import CookieMaker
from wgvsock.wireguard.endpoints import without_source
from wgvsock.wireguard.events import DropReason, HandshakeCompleted, HandshakeFailed, SessionExpired
from wgvsock.wireguard.keypair import Keypair, Keypairs
from wgvsock.wireguard.noise import Handshake
from wgvsock.wireguard.statistics import PeerStatistics
from wgvsock.wireguard.timers import NEVER, Expired, Timers

if TYPE_CHECKING:
    from wgvsock.wireguard.device import Device


class Profile(Enum):
    """The form of the plaintext of transport data."""

    PLAIN = "plain"
    """One IP packet: the standard form, which every implementation uses."""
    GSO = "gso"
    """A virtio_net_hdr and an IP packet of up to 64 KiB, which only the far kernel segments."""


def check_preshared_key(preshared_key: bytes | None) -> None:
    """Raise ConfigurationError unless the key has 32 bytes or is None."""
    if preshared_key is not None and len(preshared_key) != KEY_SIZE:
        raise ConfigurationError(f"a preshared key has {KEY_SIZE} bytes", why=f"{len(preshared_key)} bytes given")


def check_persistent_keepalive(seconds: int) -> None:
    """Raise ConfigurationError unless the interval fits into the configuration protocol's 16 bits."""
    if not 0 <= seconds <= MAX_PERSISTENT_KEEPALIVE:
        raise ConfigurationError(
            f"a persistent keepalive must be from 0 to {MAX_PERSISTENT_KEEPALIVE} seconds", why=f"{seconds} given"
        )


def check_profile(profile: Profile, packet_headroom: int) -> None:
    """Raise ConfigurationError if the profile needs headroom and the device has none."""
    if profile is Profile.GSO and not packet_headroom:
        raise ConfigurationError(
            "the gso profile needs packets with a virtio-net header",
            why="the device was created with packet_headroom=0",
            fix="create the device with packet_headroom=10, or use the plain profile",
        )


class Peer:
    """One remote identity. `Device.add_peer` creates peers. A removed peer is inert.

    Attributes:
        public_key: The remote static key, 32 bytes, which is the peer's identity.
        endpoint: Where to send: the source of the last authenticated message, or the configured endpoint.
        last_authenticated: When the last authenticated message of any kind arrived, in monotonic seconds. -inf: never.
        last_handshake: When the last handshake completed, as Unix time in nanoseconds, 0 if never.
        rx_bytes: Bytes of authenticated messages received, headers included.
        tx_bytes: Bytes of authenticated messages sent, headers included.
        rx_packets: Number of authenticated messages received.
        tx_packets: Number of authenticated messages sent.
        removed: True once the device has removed the peer.
        plaintext_offset: Where the plaintext begins in a packet's buffer: after the headroom unless that is sent too.
    """

    __slots__ = (
        "_predecessor",
        "_profile",
        "cookie",
        "device",
        "endpoint",
        "handshake",
        "handshakes_completed",
        "handshakes_initiated",
        "keypairs",
        "last_authenticated",
        "last_handshake",
        "last_sent_handshake",
        "plaintext_offset",
        "public_key",
        "removed",
        "rx_bytes",
        "rx_packets",
        "staged",
        "timers",
        "tx_bytes",
        "tx_packets",
    )

    def __init__(self, device: Device, public_key: bytes, profile: Profile) -> None:
        self.device = device
        self.public_key = public_key
        self.endpoint: Hashable | None = None
        self.handshake = Handshake(public_key)
        self.keypairs = Keypairs(device.retire_keypair)
        self.timers = Timers(device.timings, device.random, self._wake_at)
        self.cookie = CookieMaker(public_key, device.timings)
        self.staged: deque[bytes] = deque()
        self._predecessor: Peer | None = None
        self.removed = False
        self.last_sent_handshake = -NEVER
        self.last_authenticated = -NEVER
        self.last_handshake = 0
        self.handshakes_initiated = self.handshakes_completed = 0
        self.rx_bytes = self.tx_bytes = self.rx_packets = self.tx_packets = 0
        self.set_profile(profile)

    def __repr__(self) -> str:
        return f"<Peer {self.public_key.hex()[:8]}…>"

    # --- configuration ---

    @property
    def profile(self) -> Profile:
        """The form of the plaintext of transport data."""
        return self._profile

    @property
    def preshared_key(self) -> bytes:
        """A copy of the preshared key. 32 zero bytes stand for none."""
        return bytes(self.handshake.preshared_key)

    @property
    def persistent_keepalive(self) -> int:
        """Seconds between the last message and a keepalive, 0 if off."""
        return self.timers.persistent_keepalive

    @property
    def allowed_ips(self) -> tuple[IpNetwork, ...]:
        """The networks behind this peer, in the order in which they were added."""
        return self.device.allowed_ips.networks(self)

    @property
    def predecessor(self) -> Peer | None:
        """The peer that this one replaces, until that is removed. See `Device.add_peer`."""
        if self._predecessor is not None and self._predecessor.removed:
            self._predecessor = None
        return self._predecessor

    @predecessor.setter
    def predecessor(self, peer: Peer | None) -> None:
        self._predecessor = peer

    def set_endpoint(self, endpoint: Hashable | None) -> None:
        """Send to this endpoint until an authenticated message arrives from another one."""
        self.endpoint = endpoint

    def set_preshared_key(self, preshared_key: bytes | None) -> None:
        """Use a preshared key from the next handshake message on. A running session continues.

        Args:
            preshared_key: 32 bytes, or None for none.

        Raises:
            ConfigurationError: It does not have 32 bytes.
        """
        check_preshared_key(preshared_key)
        self.handshake.preshared_key[:] = preshared_key or bytes(KEY_SIZE)

    def set_persistent_keepalive(self, seconds: int, now: float) -> None:
        """Keep the path open with a keepalive this many seconds after the last message.

        Switching it on makes a keepalive due at once. The timers send it, so that a caller that configures 10,000 peers
        does not have to wait for as many handshake initiations.

        Raises:
            ConfigurationError: It is not from 0 to 65535.
        """
        check_persistent_keepalive(seconds)
        switched_on = seconds and not self.timers.persistent_keepalive
        self.timers.set_persistent_keepalive(seconds)
        if switched_on:
            self.timers.persistent_keepalive_due(now)

    def set_profile(self, profile: Profile) -> None:
        """Change the form of the plaintext of transport data, from the next packet on.

        Raises:
            ConfigurationError: `Profile.GSO` on a device whose packets have no virtio_net_hdr.
        """
        check_profile(profile, self.device.packet_headroom)
        self._profile = profile
        self.plaintext_offset = 0 if profile is Profile.GSO else self.device.packet_headroom

    def set_allowed_ips(self, networks: Iterable[IpNetwork]) -> None:
        """Replace the networks behind this peer, taking them from other peers."""
        wanted = tuple(networks)
        self.device.allowed_ips.remove_owner(self)
        for network in wanted:
            self.add_allowed_ip(network)

    def add_allowed_ip(self, network: IpNetwork) -> None:
        """Add a network behind this peer, taking it from any other peer."""
        if not self.removed:
            self.device.allowed_ips.insert(network, self)

    def remove_allowed_ip(self, network: IpNetwork) -> None:
        """Remove a network from this peer. Does nothing if the peer does not have it."""
        self.device.allowed_ips.remove(network, self)

    # --- sessions ---

    def has_session(self, now: float) -> bool:
        """Whether packets can be sealed now."""
        current = self.keypairs.current
        return current is not None and current.can_send(now)

    def initiate_handshake(self, now: float) -> None:
        """Start a handshake, unless an initiation was sent less than REKEY_TIMEOUT ago."""
        send.send_handshake_initiation(self, now)

    def retry_handshake(self, now: float) -> None:
        """Start a handshake at once, because the path to the peer is new and earlier messages may be lost.

        For a stream that has just been connected. The caller limits how often that happens.
        """
        self.last_sent_handshake = -NEVER
        send.send_handshake_initiation(self, now)

    def announce_path(self, now: float) -> None:
        """Authenticate a new stream to the peer, and start a handshake at once, like `retry_handshake`.

        If there is a session, a keepalive goes first. It costs the peer next to nothing to verify. The peer then sends
        on this stream, and serves the handshake even while strangers flood it with initiations.
        """
        self.last_sent_handshake = -NEVER
        send.send_keepalive(self, now)  # which starts the handshake itself when it is due
        send.send_handshake_initiation(self, now)

    def receive_for(self, former: Peer, now: float) -> None:
        """Receive messages that are still in flight to a peer that this one replaces.

        Args:
            former: A peer for the same remote, about to be removed.
            now: Monotonic seconds.
        """
        former.keypairs.hand_over(self.keypairs)
        self.handshake.last_sent_timestamp = former.handshake.last_sent_timestamp  # the remote requires greater ones
        for keypair in self.keypairs:
            keypair.peer = self
            self.timers.session_derived(now)

    def expire_session(self) -> None:
        """Wipe all keys of sessions and pending handshakes. The next packet starts a handshake."""
        self.forget_pending_initiation()
        self.keypairs.clear()
        self.timers.stop()
        self.last_sent_handshake = -NEVER

    # --- for device.py, send.py and receive.py ---

    def stage(self, packet: bytes) -> None:
        """Keep a packet until there is a session. Beyond `MAX_STAGED_PACKETS` the oldest is dropped."""
        if len(self.staged) >= MAX_STAGED_PACKETS:
            self.staged.popleft()
            self.device.drop(DropReason.STAGING_FULL, peer=self)
        self.staged.append(packet)

    def drop_staged(self, reason: DropReason) -> None:
        """Drop the staged packets."""
        for _ in self.staged:
            self.device.drop(reason, peer=self)
        self.staged.clear()

    def handshake_completed(self, keypair: Keypair, now: float) -> None:
        """Note that the peer has proved its keys with this keypair."""
        self.timers.handshake_complete()
        self.last_handshake = self.device.wall_clock()
        self.handshakes_completed += 1
        if self.predecessor is not None:
            self._take_over(self.predecessor)
        self.device.emit(HandshakeCompleted(self, keypair.initiator, now - keypair.handshake_started_at))

    def forget_pending_initiation(self) -> None:
        """Wipe the pending initiation, if there is one."""
        pending = self.handshake.pending
        if pending is not None:
            del self.device.pending_by_index[pending.local_index]
            self.handshake.forget_pending()

    def handle_timers(self, now: float) -> None:
        """Do what the deadlines that have passed require (section 6)."""
        for expired in self.timers.expire(now):
            match expired:
                case Expired.RETRY_HANDSHAKE:
                    self.endpoint = without_source(self.endpoint)
                    send.send_handshake_initiation(self, now, retry=True)
                case Expired.GIVE_UP_HANDSHAKE:
                    self.forget_pending_initiation()
                    self.drop_staged(DropReason.HANDSHAKE_FAILED)
                    self.device.emit(HandshakeFailed(self, self.timers.handshake_attempts))
                case Expired.NEW_HANDSHAKE:
                    self.endpoint = without_source(self.endpoint)
                    send.send_handshake_initiation(self, now)
                case Expired.ZERO_KEY_MATERIAL:
                    self.expire_session()
                    self.device.emit(SessionExpired(self))
                case Expired.SEND_KEEPALIVE | Expired.PERSISTENT_KEEPALIVE:
                    send.send_keepalive(self, now)

    def remove(self) -> None:
        """Wipe every secret. The device has already forgotten the peer.

        The peer then contains no reference cycle, so it is freed with the last reference and not by the collector.
        """
        self.removed = True
        self.expire_session()
        self.timers.detach()
        self.drop_staged(DropReason.PEER_REMOVED)
        self.handshake.wipe()
        self.cookie.wipe()
        self._predecessor = None

    def statistics(self) -> PeerStatistics:
        """A snapshot of the counters."""
        return PeerStatistics(
            endpoint=self.endpoint,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
            rx_packets=self.rx_packets,
            tx_packets=self.tx_packets,
            last_handshake=self.last_handshake,
            handshakes_initiated=self.handshakes_initiated,
            handshakes_completed=self.handshakes_completed,
            staged_packets=len(self.staged),
        )

    def _take_over(self, predecessor: Peer) -> None:
        for network in predecessor.allowed_ips:
            self.add_allowed_ip(network)
        while predecessor.staged:
            self.stage(predecessor.staged.popleft())

    def _wake_at(self, deadline: float) -> None:
        self.device.wake_at(deadline, self)
