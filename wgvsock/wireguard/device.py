"""The one object that the layers above hold: a WireGuard interface without its network and its clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType

from wgvsock.errors import ConfigurationError
from wgvsock.wireguard import receive, send
from wgvsock.wireguard.allowedips import AllowedIps, Network
from wgvsock.wireguard.constants import (
    KEY_SIZE,
    LOAD_THRESHOLD,
    MAX_QUEUED_DATAGRAMS,
    MAX_QUEUED_EVENTS,
    MAX_QUEUED_PACKETS,
)
from wgvsock.wireguard.cookie import CookieChecker
from wgvsock.wireguard.events import Dropped, DropReason, EndpointChanged, Event
from wgvsock.wireguard.keypair import Keypair
from wgvsock.wireguard.noise import Identity
from wgvsock.wireguard.peer import Peer, Profile, check_persistent_keepalive, check_preshared_key, check_profile
from wgvsock.wireguard.primitives import Bytes, Random, is_weak
from wgvsock.wireguard.ratelimiter import LoadMeter, RateLimiter
from wgvsock.wireguard.statistics import DeviceStatistics
from wgvsock.wireguard.timers import NEVER, STANDARD_TIMINGS, Timings

VIRTIO_HEADROOM = 10
"""Size of the virtio_net_hdr that precedes each packet of a TUN with offloads, in bytes."""


class Device:
    """A WireGuard interface: one static identity, many peers, no I/O.

    Packets go in by `send_packet` and datagrams by `receive_datagram`; what has to leave is taken from
    `datagrams_to_send` and `packets_to_deliver` after every call, and `handle_timers` is called at `next_deadline`.
    The data plane uses `peer_for_packet`, `Peer.seal_into` and `open_into`, which copy nothing.

    Attributes:
        needs_attention: Whether datagrams or events may wait, or the next deadline is an earlier one. The owner resets
            it before looking; most packets leave nothing to be done.

    Args:
        random: Cryptographically secure random bytes, such as ``os.urandom``.
        wall_clock: Unix time in nanoseconds, such as ``time.time_ns``.
        timings: The protocol's limits.
        packet_headroom: Bytes in front of each IP packet: 0, or 10 for a virtio_net_hdr.
        load_threshold: Handshake messages in a second above which cookies are demanded.

    Raises:
        ConfigurationError: Another headroom.
    """

    def __init__(
        self,
        *,
        random: Random,
        wall_clock: Callable[[], int],
        timings: Timings = STANDARD_TIMINGS,
        packet_headroom: int = 0,
        load_threshold: int = LOAD_THRESHOLD,
    ) -> None:
        if packet_headroom not in {0, VIRTIO_HEADROOM}:
            raise ConfigurationError(f"packet_headroom is 0 or {VIRTIO_HEADROOM}", why=f"{packet_headroom} given")
        self.random = random
        self.wall_clock = wall_clock
        self.timings = timings
        self.packet_headroom = packet_headroom
        self.identity: Identity | None = None
        self.allowed_ips: AllowedIps[Peer] = AllowedIps()
        self.keypairs_by_index: dict[int, Keypair] = {}
        self.pending_by_index: dict[int, Peer] = {}
        self.cookie_checker = CookieChecker(random, timings)
        self.cookie_replies_sent = 0
        self.rate_limiter = RateLimiter()
        self.load = LoadMeter(load_threshold)
        self._peers: dict[bytes, Peer] = {}
        self.peers: Mapping[bytes, Peer] = MappingProxyType(self._peers)
        self._datagrams: deque[tuple[Hashable, bytes]] = deque()
        self._packets: deque[bytes] = deque()
        self._events: deque[Event] = deque()
        self._drops: Counter[DropReason] = Counter()
        self._header_drops: Counter[str] = Counter()
        self._wake_at = NEVER
        self.needs_attention = False

    # --- configuration ---

    @property
    def public_key(self) -> bytes | None:
        """Our public key; None without a private key."""
        return None if self.identity is None else self.identity.public

    def set_private_key(self, private_key: bytes | None, now: float, *, keep_sessions: bool = False) -> None:
        """Change who we are; None: nobody. A peer that has our new public key is removed.

        Args:
            private_key: 32 bytes.
            now: Monotonic seconds.
            keep_sessions: Let sessions of the old identity go on until new handshakes replace them or they expire, so
                that no packet is lost while peers learn the new public key. Else they end here, and peers with
                a persistent keepalive are contacted at once.

        Raises:
            ConfigurationError: It is not 32 bytes.
        """
        if private_key is not None and len(private_key) != KEY_SIZE:
            raise ConfigurationError(f"a private key is {KEY_SIZE} bytes", why=f"{len(private_key)} bytes given")
        identity = None if private_key is None else Identity(private_key)
        if identity is not None:
            if identity.public == self.public_key:
                return
            self.remove_peer(identity.public)
            self.cookie_checker.set_public_key(identity.public)
        self.identity = identity
        for peer in self._peers.values():
            peer.forget_pending_initiation()
            peer.handshake.precompute(identity)
            peer.last_sent_handshake = -NEVER
            if not keep_sessions:
                peer.expire_session()
                if peer.persistent_keepalive:
                    send.send_keepalive(peer, now)

    def add_peer(
        self,
        public_key: bytes,
        *,
        preshared_key: bytes | None = None,
        allowed_ips: Iterable[Network] = (),
        endpoint: Hashable | None = None,
        persistent_keepalive: int = 0,
        profile: Profile = Profile.PLAIN,
        successor_of: bytes | None = None,
        now: float,
    ) -> Peer:
        """Add a peer, or give a known one exactly these settings; its session and its counters stay.

        Args:
            public_key: 32 bytes.
            preshared_key: 32 bytes; None = none.
            allowed_ips: The networks behind the peer; those that other peers had move here.
            endpoint: Where to send first; None keeps the one that is known.
            persistent_keepalive: Seconds; 0 = off. With it the peer is contacted at once.
            profile: What the plaintext of transport data is.
            successor_of: Public key of the peer that this one replaces without losing a packet: when its first
                handshake completes, all allowed IPs of the other move here before any packet is looked at, and packets
                of the other that are still on their way are accepted until `remove_peer` ends it. An endpoint that is
                not given is the other's.
            now: Monotonic seconds.

        Raises:
            ConfigurationError: A key of a wrong length, our own or a weak one, a keepalive out of range, or the gso
                profile without headroom. Nothing has changed then.
        """
        check_preshared_key(preshared_key)
        check_persistent_keepalive(persistent_keepalive)
        check_profile(profile, self.packet_headroom)
        peer = self._peers.get(public_key) or self._new_peer(public_key, profile)
        self._peers[public_key] = peer
        peer.set_preshared_key(preshared_key)
        peer.set_profile(profile)
        predecessor = None if successor_of is None else self._peers.get(successor_of)
        peer.predecessor = predecessor if predecessor is not peer else None
        if endpoint is not None:
            peer.endpoint = endpoint
        elif peer.endpoint is None and predecessor is not None:
            peer.endpoint = predecessor.endpoint
        peer.set_allowed_ips(allowed_ips)
        peer.set_persistent_keepalive(persistent_keepalive, now)
        return peer

    def remove_peer(self, public_key: bytes) -> None:
        """Forget a peer and wipe its secrets; its allowed IPs belong to nobody. An unknown key is no error."""
        peer = self._peers.pop(public_key, None)
        if peer is None:
            return
        self.allowed_ips.remove_owner(peer)
        for other in self._peers.values():
            if other.predecessor is peer:
                other.predecessor = None
        peer.remove()

    # --- the generic verbs ---

    def send_packet(self, packet: Bytes, now: float) -> None:
        """Route, seal and queue one packet (with its headroom), or stage it and start a handshake."""
        send.send_packet(self, packet, now)

    def receive_datagram(self, data: Bytes, endpoint: Hashable, now: float) -> None:
        """Take in one datagram from an endpoint; an accepted packet is queued for `packets_to_deliver`."""
        out = memoryview(bytearray(self.packet_headroom + len(data)))
        length = receive.open_into(self, memoryview(data), endpoint, out, now)
        if length:
            if len(self._packets) >= MAX_QUEUED_PACKETS:
                self._packets.popleft()
                self.drop(DropReason.QUEUE_FULL)
            self._packets.append(bytes(out[:length]))

    def datagrams_to_send(self) -> list[tuple[Hashable, bytes]]:
        """Take out what has to be sent, oldest first, as (endpoint, datagram)."""
        datagrams = list(self._datagrams)
        self._datagrams.clear()
        return datagrams

    def packets_to_deliver(self) -> list[bytes]:
        """Take out the packets (with headroom) that `receive_datagram` accepted, oldest first."""
        packets = list(self._packets)
        self._packets.clear()
        return packets

    def next_deadline(self) -> float | None:
        """When `handle_timers` is due, monotonic seconds: never too late, now and then too early; None: not at all."""
        return None if self._wake_at == NEVER else self._wake_at

    def handle_timers(self, now: float) -> None:
        """Do what is due; cheap when nothing is."""
        if now < self._wake_at:
            return
        self._wake_at = NEVER
        for peer in self._peers.values():
            peer.handle_timers(now)
            self.wake_at(peer.timers.deadline())

    def next_event(self) -> Event | None:
        """Take out the oldest event."""
        return self._events.popleft() if self._events else None

    def statistics(self) -> DeviceStatistics:
        """A snapshot of all counters."""
        return DeviceStatistics(
            drops=MappingProxyType(dict(self._drops)),
            virtio_header_drops=MappingProxyType(dict(self._header_drops)),
            cookie_replies_sent=self.cookie_replies_sent,
            peers=MappingProxyType({key: peer.statistics() for key, peer in self._peers.items()}),
        )

    # --- the hot path ---

    # The functions themselves: on a cold processor each call in between would cost some microseconds more.
    peer_for_packet = send.peer_for_packet
    open_into = receive.open_into

    # --- for peer.py, send.py and receive.py ---

    def new_index(self) -> int:
        """A random 32-bit index that names no session and no handshake of ours."""
        while True:
            index = int.from_bytes(self.random(4), "little")
            if index not in self.keypairs_by_index and index not in self.pending_by_index:
                return index

    def queue_datagram(self, endpoint: Hashable | None, datagram: bytes) -> None:
        """Queue a datagram for `datagrams_to_send`."""
        if endpoint is None:
            self.drop(DropReason.NO_ENDPOINT)
            return
        if len(self._datagrams) >= MAX_QUEUED_DATAGRAMS:
            self._datagrams.popleft()
            self.drop(DropReason.QUEUE_FULL)
        self._datagrams.append((endpoint, datagram))
        self.needs_attention = True

    def wake_at(self, deadline: float) -> None:
        """Make `next_deadline` no later than this."""
        if deadline < self._wake_at:
            self._wake_at = deadline
            self.needs_attention = True

    def drop(self, reason: DropReason, endpoint: Hashable | None = None, peer: Peer | None = None) -> None:
        """Count something that was dropped."""
        self._drops[reason] += 1
        self.emit(Dropped(reason, endpoint, peer))

    def drop_bad_header(self, fault: str, endpoint: Hashable, peer: Peer) -> None:
        """Count a packet whose virtio_net_hdr was refused."""
        self._header_drops[fault] += 1
        self.drop(DropReason.BAD_VIRTIO_HEADER, endpoint, peer)

    def emit(self, event: Event) -> None:
        """Queue an event for `next_event`.

        Notices that a remote can cause at will take no more than half of the queue, so that a flood pushes out nothing
        that matters; the oldest event gives way when the owner does not drain the queue.
        """
        if isinstance(event, Dropped | EndpointChanged) and len(self._events) >= MAX_QUEUED_EVENTS // 2:
            return
        if len(self._events) >= MAX_QUEUED_EVENTS:
            self._events.popleft()
        self._events.append(event)
        self.needs_attention = True

    def _new_peer(self, public_key: bytes, profile: Profile) -> Peer:
        if len(public_key) != KEY_SIZE:
            raise ConfigurationError(f"a public key is {KEY_SIZE} bytes", why=f"{len(public_key)} bytes given")
        if public_key == self.public_key:
            raise ConfigurationError("a device cannot be its own peer", fix="give the other side's public key")
        if is_weak(public_key):
            raise ConfigurationError("this public key is unusable", why="it is a point of low order")
        peer = Peer(self, public_key, profile)
        peer.handshake.precompute(self.identity)
        return peer
