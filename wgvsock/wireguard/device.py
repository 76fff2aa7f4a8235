"""The one object that the layers above hold: a WireGuard interface without a network and a clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType

from wgvsock.addresses import IpNetwork
from wgvsock.errors import ConfigurationError
from wgvsock.wireguard import receive, send
from wgvsock.wireguard.allowedips import AllowedIps
from wgvsock.wireguard.constants import (
    KEY_SIZE,
    LOAD_THRESHOLD,
    MAX_QUEUED_DATAGRAMS,
    MAX_QUEUED_EVENTS,
    MAX_QUEUED_PACKETS,
    TIMERS_AT_ONCE,
)
from wgvsock.wireguard.cookie import CookieChecker
from wgvsock.wireguard.events import Dropped, DropReason, EndpointChanged, Event
from wgvsock.wireguard.keypair import Keypair
from wgvsock.wireguard.noise import Identity
from wgvsock.wireguard.peer import Peer, Profile, check_persistent_keepalive, check_preshared_key, check_profile
from wgvsock.wireguard.primitives import Bytes, Random
from wgvsock.wireguard.ratelimiter import LoadMeter, RateLimiter, StrangerLimiter
from wgvsock.wireguard.schedule import Schedule
from wgvsock.wireguard.statistics import DeviceStatistics
from wgvsock.wireguard.timers import NEVER, STANDARD_TIMINGS, Timings

VIRTIO_HEADROOM = 10
"""Size of the virtio_net_hdr that precedes each packet of a TUN with offloads, in bytes."""


class Device:
    """A WireGuard interface: one static identity, many peers, no I/O.

    Packets enter through `send_packet`, and datagrams through `receive_datagram`. After every call, take the results
    from `datagrams_to_send` and `packets_to_deliver`. Call `handle_timers` at `next_deadline`. The data plane calls the
    functions `peer_for_packet`, `seal_into` and `open_into` instead, which copy nothing.

    Attributes:
        needs_attention: Whether datagrams or events may be queued, or the next deadline may be earlier than before. The
            owner resets it before checking. Most packets leave nothing to do.
        authenticated_endpoint: The source of the last authenticated message without a packet: a keepalive or a
            handshake message. The owner resets it to notice the next one. (A packet is its own proof.)

    Args:
        random: Cryptographically secure random bytes, such as ``os.urandom``.
        wall_clock: Unix time in nanoseconds, such as ``time.time_ns``.
        timings: The protocol's limits.
        packet_headroom: Bytes in front of each IP packet: 0, or 10 for a virtio_net_hdr.
        load_threshold: Handshake messages per second above which cookies are required.

    Raises:
        ConfigurationError: The headroom is neither 0 nor 10.
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
            raise ConfigurationError(f"packet_headroom must be 0 or {VIRTIO_HEADROOM}", why=f"{packet_headroom} given")
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
        self.stranger_limiter = StrangerLimiter()
        self.load = LoadMeter(load_threshold)
        self._peers: dict[bytes, Peer] = {}
        self.peers: Mapping[bytes, Peer] = MappingProxyType(self._peers)
        self._datagrams: deque[tuple[Hashable, bytes]] = deque()
        self._packets: deque[bytes] = deque()
        self._events: deque[Event] = deque()
        self._drops: Counter[DropReason] = Counter()
        self._header_drops: Counter[str] = Counter()
        self._schedule = Schedule()
        self.needs_attention = False
        self.authenticated_endpoint: Hashable | None = None

    # --- configuration ---

    @property
    def public_key(self) -> bytes | None:
        """Our public key, 32 bytes, or None without a private key."""
        return None if self.identity is None else self.identity.public

    def set_private_key(self, private_key: bytes | None, now: float, *, keep_sessions: bool = False) -> None:
        """Change our identity. A peer that has our new public key is removed.

        Args:
            private_key: 32 bytes, or None for no identity.
            now: Monotonic seconds.
            keep_sessions: Keep sessions of the old identity until new handshakes replace them or they expire, so that
                no packet is lost while peers learn the new public key. Otherwise they end now, and peers with a
                persistent keepalive are contacted as soon as the timers are handled.

        Raises:
            ConfigurationError: The key does not have 32 bytes.
        """
        if private_key is not None and len(private_key) != KEY_SIZE:
            raise ConfigurationError(f"a private key has {KEY_SIZE} bytes", why=f"{len(private_key)} bytes given")
        identity = None if private_key is None else Identity(private_key)
        if identity is not None:
            if identity.public == self.public_key:
                return
            self.remove_peer(identity.public)
            self.cookie_checker.set_public_key(identity.public)
        self.identity = identity
        for peer in self._peers.values():
            peer.forget_pending_initiation()
            peer.handshake.set_identity(identity)
            peer.last_sent_handshake = -NEVER
            if not keep_sessions:
                peer.expire_session()
                peer.timers.persistent_keepalive_due(now)

    def add_peer(
        self,
        public_key: bytes,
        *,
        preshared_key: bytes | None = None,
        allowed_ips: Iterable[IpNetwork] = (),
        endpoint: Hashable | None = None,
        persistent_keepalive: int = 0,
        profile: Profile = Profile.PLAIN,
        successor_of: bytes | None = None,
        now: float,
    ) -> Peer:
        """Add a peer, or give a known one exactly these settings. A known peer keeps its session and its counters.

        Args:
            public_key: 32 bytes. With a key of low order, whose shared secrets everybody knows, no handshake is ever
                started or answered.
            preshared_key: 32 bytes, or None for none.
            allowed_ips: The networks behind the peer. Those that other peers had move to this one.
            endpoint: Where to send first, or None to keep the known endpoint.
            persistent_keepalive: Seconds, 0 for off. If on, the peer is contacted as soon as the timers are handled.
            profile: The form of the plaintext of transport data.
            successor_of: Public key of the peer that this one replaces without losing a packet. When this peer's first
                handshake completes, all allowed IPs of the other move here before any packet is processed. Packets of
                the other that are still in flight are accepted until it is removed with `remove_peer`. If no endpoint
                is given, the other's is used.
            now: Monotonic seconds.

        Raises:
            ConfigurationError: A key has the wrong length or is our own, the keepalive is out of range, or the gso
                profile is used without headroom. Nothing has changed then.
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
        """Forget a peer with its allowed IPs, and wipe its secrets. Does nothing if the key is unknown."""
        peer = self._peers.pop(public_key, None)
        if peer is None:
            return
        self.allowed_ips.remove_owner(peer)
        peer.remove()

    def replace_peer(self, public_key: bytes, *, preshared_key: bytes | None = None, now: float) -> Peer:
        """Remove a peer and add it again, without its settings, counters and session.

        The next packet starts a handshake. Only the allowed IPs stay, so that they are never missing. The owner
        replaces them.

        Packets that the remote still sends under the old session are accepted until it expires, at most
        REJECT_AFTER_TIME later, unless the preshared key changes.

        Args:
            public_key: The key of an existing peer, 32 bytes.
            preshared_key: 32 bytes, or None for none.
            now: Monotonic seconds.
        """
        former = self._peers[public_key]
        peer = self._new_peer(public_key, former.profile)
        peer.set_preshared_key(preshared_key)
        if peer.preshared_key == former.preshared_key:
            peer.receive_for(former, now)
        self.allowed_ips.transfer(former, peer)
        self.remove_peer(public_key)
        self._peers[public_key] = peer
        return peer

    # --- generic operations ---

    def send_packet(self, packet: Bytes, now: float) -> None:
        """Route, seal and queue one packet, or stage it and start a handshake.

        Args:
            packet: An IP packet with its headroom.
            now: Monotonic seconds.
        """
        send.send_packet(self, packet, now)

    def receive_datagram(self, data: Bytes, endpoint: Hashable, now: float) -> None:
        """Process one datagram. An accepted packet is queued for `packets_to_deliver`.

        Args:
            data: One complete message.
            endpoint: Its source.
            now: Monotonic seconds.
        """
        out = memoryview(bytearray(self.packet_headroom + len(data)))
        length = receive.open_into(self, memoryview(data), endpoint, out, now)
        if length:
            if len(self._packets) >= MAX_QUEUED_PACKETS:
                self._packets.popleft()
                self.drop(DropReason.QUEUE_FULL)
            self._packets.append(bytes(out[:length]))

    def datagrams_to_send(self) -> list[tuple[Hashable, bytes]]:
        """Remove and return the queued datagrams, oldest first, as pairs of endpoint and datagram."""
        datagrams = list(self._datagrams)
        self._datagrams.clear()
        return datagrams

    def packets_to_deliver(self) -> list[bytes]:
        """Remove and return the packets (with headroom) that `receive_datagram` accepted, oldest first."""
        packets = list(self._packets)
        self._packets.clear()
        return packets

    def next_deadline(self) -> float | None:
        """When `handle_timers` is due, in monotonic seconds: never too late, sometimes too early. None if not due."""
        return self._schedule.next_deadline()

    def handle_timers(self, now: float) -> None:
        """Handle the timers that are due. Cheap if none is.

        One call handles at most `TIMERS_AT_ONCE` peers. If more are due, `next_deadline` is not in the future, and the
        owner calls again after it has sent the queued datagrams.
        """
        for peer in self._schedule.take_due(now, TIMERS_AT_ONCE):
            peer.handle_timers(now)
            self.wake_at(peer.timers.deadline(), peer)

    def next_event(self) -> Event | None:
        """Remove and return the oldest event, or None."""
        return self._events.popleft() if self._events else None

    def statistics(self) -> DeviceStatistics:
        """A snapshot of all counters."""
        return DeviceStatistics(
            drops=MappingProxyType(dict(self._drops)),
            virtio_header_drops=MappingProxyType(dict(self._header_drops)),
            cookie_replies_sent=self.cookie_replies_sent,
            peers=MappingProxyType({key: peer.statistics() for key, peer in self._peers.items()}),
        )

    # --- for peer.py, send.py and receive.py ---

    def new_index(self) -> int:
        """A random 32-bit index that none of our sessions and handshakes uses."""
        while True:
            index = int.from_bytes(self.random(4), "little")
            if index not in self.keypairs_by_index and index not in self.pending_by_index:
                return index

    def retire_keypair(self, keypair: Keypair) -> None:
        """Forget a keypair and its keys."""
        del self.keypairs_by_index[keypair.local_index]
        keypair.wipe()

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

    def wake_at(self, deadline: float, peer: Peer) -> None:
        """Handle this peer's timers at `deadline` at the latest. It is the last deadline that they announced."""
        if self._schedule.add(deadline, peer):
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

        Events that a remote can cause at will take at most half of the queue, so that a flood cannot displace others.
        If the owner does not drain the queue, the oldest event is dropped.
        """
        if isinstance(event, Dropped | EndpointChanged) and len(self._events) >= MAX_QUEUED_EVENTS // 2:
            return
        if len(self._events) >= MAX_QUEUED_EVENTS:
            self._events.popleft()
        self._events.append(event)
        self.needs_attention = True

    def _new_peer(self, public_key: bytes, profile: Profile) -> Peer:
        if len(public_key) != KEY_SIZE:
            raise ConfigurationError(f"a public key has {KEY_SIZE} bytes", why=f"{len(public_key)} bytes given")
        if public_key == self.public_key:
            raise ConfigurationError("a device cannot be its own peer", fix="give the other side's public key")
        peer = Peer(self, public_key, profile)
        peer.handshake.set_identity(self.identity)
        return peer
