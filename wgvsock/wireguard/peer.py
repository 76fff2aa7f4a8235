"""One remote identity: its handshake, keypairs, timers, staged packets and endpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from enum import Enum
from typing import TYPE_CHECKING

from wgvsock.errors import ConfigurationError
from wgvsock.wireguard import send
from wgvsock.wireguard.allowedips import Network
from wgvsock.wireguard.constants import KEY_SIZE, MAX_PERSISTENT_KEEPALIVE, MAX_STAGED_PACKETS
from wgvsock.wireguard.cookie import CookieMaker
from wgvsock.wireguard.events import DropReason, HandshakeCompleted, HandshakeFailed, SessionExpired
from wgvsock.wireguard.keypair import Keypair, Keypairs
from wgvsock.wireguard.noise import Handshake
from wgvsock.wireguard.statistics import PeerStatistics
from wgvsock.wireguard.timers import NEVER, Expired, Timers

if TYPE_CHECKING:
    from wgvsock.wireguard.device import Device


class Profile(Enum):
    """What the plaintext of transport data is."""

    PLAIN = "plain"
    """One IP packet: the standard, and what every other implementation speaks."""
    GSO = "gso"
    """A virtio_net_hdr and an IP packet of up to 64 KiB, which only the far kernel segments."""


def check_preshared_key(preshared_key: bytes | None) -> None:
    """Raise ConfigurationError unless it is 32 bytes or None."""
    if preshared_key is not None and len(preshared_key) != KEY_SIZE:
        raise ConfigurationError(f"a preshared key is {KEY_SIZE} bytes", why=f"{len(preshared_key)} bytes given")


def check_persistent_keepalive(seconds: int) -> None:
    """Raise ConfigurationError unless the interval fits the 16 bits that it has in the configuration protocol."""
    if not 0 <= seconds <= MAX_PERSISTENT_KEEPALIVE:
        raise ConfigurationError(
            f"a persistent keepalive is 0 to {MAX_PERSISTENT_KEEPALIVE} seconds", why=f"{seconds} given"
        )


def check_profile(profile: Profile, packet_headroom: int) -> None:
    """Raise ConfigurationError for a profile whose plaintexts a device without headroom cannot make."""
    if profile is Profile.GSO and not packet_headroom:
        raise ConfigurationError(
            "the gso profile needs packets with a virtio-net header",
            why="the device was made with packet_headroom=0",
            fix="make the device with packet_headroom=10, or use the plain profile",
        )


class Peer:
    """One remote identity. `Device.add_peer` makes peers; one that was removed is inert.

    Attributes:
        public_key: The remote static key, which is the peer's identity.
        endpoint: Where to send: the source of the last authenticated message, or what was configured.
        last_authenticated: When the last authenticated message of any kind arrived, monotonic seconds; -inf = never.
        last_handshake: When the last handshake completed, Unix time in nanoseconds; 0 = never.
        rx_bytes: Bytes of authenticated messages, headers included.
        tx_bytes: Likewise, sent.
        rx_packets: Authenticated messages.
        tx_packets: Likewise, sent.
        removed: True once the device has let go of the peer.
        plaintext_offset: Where in a packet's buffer the plaintext begins: behind the headroom unless that is sent too.
        predecessor: The peer that this one replaces; see `Device.add_peer`.
    """

    __slots__ = (
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
        "predecessor",
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
        self.keypairs = Keypairs(self._retire_keypair)
        self.timers = Timers(device.timings, device.random, device.wake_at)
        self.cookie = CookieMaker(public_key, device.timings)
        self.staged: deque[bytes] = deque()
        self.predecessor: Peer | None = None
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
        """What the plaintext of transport data is."""
        return self._profile

    @property
    def preshared_key(self) -> bytes:
        """A copy of the preshared key; 32 zero bytes = none."""
        return bytes(self.handshake.preshared_key)

    @property
    def persistent_keepalive(self) -> int:
        """Seconds after the last message at which a keepalive follows; 0 = off."""
        return self.timers.persistent_keepalive

    @property
    def allowed_ips(self) -> tuple[Network, ...]:
        """The networks behind this peer, in the order in which they were given."""
        return self.device.allowed_ips.networks(self)

    def set_endpoint(self, endpoint: Hashable | None) -> None:
        """Send there from now on, until the next authenticated message says otherwise."""
        self.endpoint = endpoint

    def set_preshared_key(self, preshared_key: bytes | None) -> None:
        """Use this preshared key from the next handshake message on; None = none. A running session goes on.

        Raises:
            ConfigurationError: It is not 32 bytes.
        """
        check_preshared_key(preshared_key)
        self.handshake.preshared_key[:] = preshared_key or bytes(KEY_SIZE)

    def set_persistent_keepalive(self, seconds: int, now: float) -> None:
        """Keep the path open with a keepalive this long after the last message; switching it on sends one at once.

        Raises:
            ConfigurationError: Not 0 to 65535.
        """
        check_persistent_keepalive(seconds)
        switched_on = seconds and not self.timers.persistent_keepalive
        self.timers.set_persistent_keepalive(seconds)
        if switched_on:
            send.send_keepalive(self, now)

    def set_profile(self, profile: Profile) -> None:
        """Change what the plaintext of transport data is, from the next packet on.

        Raises:
            ConfigurationError: `Profile.GSO` on a device whose packets have no virtio_net_hdr.
        """
        check_profile(profile, self.device.packet_headroom)
        self._profile = profile
        self.plaintext_offset = 0 if profile is Profile.GSO else self.device.packet_headroom

    def set_allowed_ips(self, networks: Iterable[Network]) -> None:
        """Replace the networks behind this peer; those that others had are taken from them."""
        wanted = tuple(networks)
        self.device.allowed_ips.remove_owner(self)
        for network in wanted:
            self.add_allowed_ip(network)

    def add_allowed_ip(self, network: Network) -> None:
        """Put a network behind this peer; whoever had it loses it."""
        if not self.removed:
            self.device.allowed_ips.insert(network, self)

    # --- sessions ---

    def has_session(self, now: float) -> bool:
        """Whether packets can be sealed now."""
        current = self.keypairs.current
        return current is not None and current.can_send(now)

    seal_into = send.seal_into  # the hot path: no call in between

    def initiate_handshake(self, now: float) -> None:
        """Start a handshake, unless an initiation was sent less than REKEY_TIMEOUT ago."""
        send.send_handshake_initiation(self, now)

    def retry_handshake(self, now: float) -> None:
        """Start a handshake at once: the path to the peer is new, so whatever was sent before may be lost.

        For a stream that has just been connected. The caller bounds how often that happens.
        """
        self.last_sent_handshake = -NEVER
        send.send_handshake_initiation(self, now)

    def expire_session(self) -> None:
        """Wipe all keys of sessions and of pending handshakes; the next packet starts a handshake."""
        self.forget_pending_initiation()
        self.keypairs.clear()
        self.timers.stop()
        self.last_sent_handshake = -NEVER

    # --- for device.py, send.py and receive.py ---

    def stage(self, packet: bytes) -> None:
        """Keep a packet until there is a session; beyond `MAX_STAGED_PACKETS` the oldest is dropped."""
        if len(self.staged) >= MAX_STAGED_PACKETS:
            self.staged.popleft()
            self.device.drop(DropReason.STAGING_FULL, peer=self)
        self.staged.append(packet)

    def drop_staged(self, reason: DropReason) -> None:
        """Give up on the staged packets."""
        for _ in self.staged:
            self.device.drop(reason, peer=self)
        self.staged.clear()

    def handshake_completed(self, keypair: Keypair, now: float) -> None:
        """The peer has proved its keys with this keypair."""
        self.timers.handshake_complete()
        self.last_handshake = self.device.wall_clock()
        self.handshakes_completed += 1
        if self.predecessor is not None:
            self._take_over(self.predecessor)
        self.device.emit(HandshakeCompleted(self, keypair.initiator, now - keypair.handshake_started_at))

    def forget_pending_initiation(self) -> None:
        """Wipe the initiation that waits for its response, if any."""
        pending = self.handshake.pending
        if pending is not None:
            del self.device.pending_by_index[pending.local_index]
            self.handshake.forget_pending()

    def handle_timers(self, now: float) -> None:
        """Do what the deadlines that have passed ask for (section 6)."""
        for expired in self.timers.expire(now):
            match expired:
                case Expired.RETRY_HANDSHAKE:
                    send.send_handshake_initiation(self, now, retry=True)
                case Expired.GIVE_UP_HANDSHAKE:
                    self.forget_pending_initiation()
                    self.drop_staged(DropReason.HANDSHAKE_FAILED)
                    self.device.emit(HandshakeFailed(self, self.timers.handshake_attempts))
                case Expired.NEW_HANDSHAKE:
                    send.send_handshake_initiation(self, now)
                case Expired.ZERO_KEY_MATERIAL:
                    self.expire_session()
                    self.device.emit(SessionExpired(self))
                case Expired.SEND_KEEPALIVE | Expired.PERSISTENT_KEEPALIVE:
                    send.send_keepalive(self, now)

    def remove(self) -> None:
        """Wipe every secret; the device has already forgotten the peer."""
        self.removed = True
        self.expire_session()
        self.timers.set_persistent_keepalive(0)
        self.drop_staged(DropReason.PEER_REMOVED)
        self.handshake.wipe()
        self.cookie.wipe()
        self.predecessor = None

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

    def _retire_keypair(self, keypair: Keypair) -> None:
        del self.device.keypairs_by_index[keypair.local_index]
        keypair.wipe()
