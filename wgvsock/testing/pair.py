"""Two devices, a wire between them and an eavesdropper: the usual setting for a test of the core.

Nothing is concurrent: `DevicePair.transfer` carries datagrams until both sides are silent, and `DevicePair.run` lets
virtual time pass from deadline to deadline.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from wgvsock.testing.clock import ManualClock, SeededRandom
from wgvsock.wireguard.constants import LOAD_THRESHOLD
from wgvsock.wireguard.device import Device
from wgvsock.wireguard.events import DropReason, Event
from wgvsock.wireguard.messages import (
    CookieReply,
    HandshakeInitiation,
    HandshakeResponse,
    Message,
    TransportData,
    parse_message,
)
from wgvsock.wireguard.peer import Peer, Profile
from wgvsock.wireguard.primitives import generate_private_key, public_key
from wgvsock.wireguard.timers import STANDARD_TIMINGS, Timings

ALICE: Final = "alice"
BOB: Final = "bob"
"""The endpoints. Alice is configured with Bob's, and Bob learns hers."""

_ROUNDS: Final = 1000
"""More than any exchange takes. If two devices never fall silent, that is a bug."""

MessageType = TypeVar("MessageType", HandshakeInitiation, HandshakeResponse, CookieReply, TransportData)


def ipv4_packet(source: str, destination: str, payload: bytes = b"") -> bytes:
    """A minimal IPv4 packet (protocol 253, RFC 3692): 20 bytes of header without a checksum, then the payload."""
    header = bytes([0x45, 0, *(20 + len(payload)).to_bytes(2, "big"), 0, 0, 0, 0, 64, 253, 0, 0])
    return header + ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed + payload


def ipv6_packet(source: str, destination: str, payload: bytes = b"") -> bytes:
    """A minimal IPv6 packet (next header 253): 40 bytes of header, then the payload."""
    header = bytes([0x60, 0, 0, 0, *len(payload).to_bytes(2, "big"), 253, 64])
    return header + ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed + payload


@dataclass(frozen=True, slots=True)
class Sighting:
    """One datagram on the wire."""

    time: float
    sender: str
    receiver: str
    datagram: bytes

    @property
    def message(self) -> Message:
        """The datagram, parsed."""
        return parse_message(self.datagram)


class Eavesdropper:
    """Records everything on the wire, whether or not it arrives."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []

    def of(self, kind: type[MessageType]) -> list[MessageType]:
        """The messages of one kind, in order."""
        return [message for sighting in self.sightings if isinstance(message := sighting.message, kind)]

    def keepalives(self) -> list[TransportData]:
        """The transport data messages without a packet."""
        return [message for message in self.of(TransportData) if message.is_keepalive]

    def data(self) -> list[TransportData]:
        """The transport data messages with a packet."""
        return [message for message in self.of(TransportData) if not message.is_keepalive]

    def clear(self) -> None:
        """Forget everything so far."""
        self.sightings.clear()


class DevicePair:
    """Alice (10.0.0.1, fd00::1) and Bob (10.0.0.2, fd00::2), who are each other's peers.

    Args:
        timings: WireGuard's timers of both devices.
        packet_headroom: Headroom of both devices in bytes.
        profile: Profile of both peers.
        preshared_key: Preshared key of both peers, 32 bytes, or None.
        load_threshold: Load threshold of both devices.

    Attributes:
        alice: One device.
        bob: The other device.
        alices_peer: Alice's peer, which is Bob.
        bobs_peer: Bob's peer, which is Alice.
        clock: The clock of both.
        wire: The eavesdropper.
        loses: Called with each datagram on the wire. If it returns True, the datagram does not arrive.
    """

    def __init__(
        self,
        *,
        timings: Timings = STANDARD_TIMINGS,
        packet_headroom: int = 0,
        profile: Profile = Profile.PLAIN,
        preshared_key: bytes | None = None,
        load_threshold: int = LOAD_THRESHOLD,
    ) -> None:
        self.clock = ManualClock()
        self.wire = Eavesdropper()
        self.loses: Callable[[Sighting], bool] = lambda _: False

        def make(name: str) -> tuple[Device, bytes]:
            random = SeededRandom(name)
            device = Device(
                random=random,
                wall_clock=self.clock.wall_clock,
                timings=timings,
                packet_headroom=packet_headroom,
                load_threshold=load_threshold,
            )
            private_key = generate_private_key(random)
            device.set_private_key(private_key, self.now)
            return device, public_key(private_key)

        def introduce(device: Device, other: bytes, number: int, endpoint: str | None) -> Peer:
            return device.add_peer(
                other,
                preshared_key=preshared_key,
                allowed_ips=[ipaddress.ip_network(f"10.0.0.{number}/32"), ipaddress.ip_network(f"fd00::{number}/128")],
                endpoint=endpoint,
                profile=profile,
                now=self.now,
            )

        self.alice, alices_key = make(ALICE)
        self.bob, bobs_key = make(BOB)
        self.alices_peer = introduce(self.alice, bobs_key, 2, BOB)
        self.bobs_peer = introduce(self.bob, alices_key, 1, None)

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self.clock.now

    def handshake(self) -> None:
        """Let Alice complete a handshake, then remove its traces from the wire and from the events."""
        self.alices_peer.initiate_handshake(self.now)
        self.transfer()
        self.wire.clear()
        for device in (self.alice, self.bob):
            drain_events(device)

    def transfer(self) -> None:
        """Carry datagrams until both sides are silent."""
        for _ in range(_ROUNDS):
            if not [*self._carry(self.alice, ALICE, self.bob, BOB), *self._carry(self.bob, BOB, self.alice, ALICE)]:
                return
        raise AssertionError("the two devices never fall silent")

    def run(self, seconds: float) -> None:
        """Let seconds pass, deadline by deadline. Both sides handle their timers, and datagrams are carried."""
        end = self.now + seconds
        while (deadline := self._next_deadline()) <= end:
            self.clock.advance(max(0.0, deadline - self.now))
            self.alice.handle_timers(self.now)
            self.bob.handle_timers(self.now)
            self.transfer()
        self.clock.advance(end - self.now)

    def alice_sends(self, payload: bytes = b"from alice") -> list[bytes]:
        """Send a packet from Alice to Bob, and return the packets that Bob delivers."""
        self.alice.send_packet(self._headroom + ipv4_packet("10.0.0.1", "10.0.0.2", payload), self.now)
        self.transfer()
        return self.bob.packets_to_deliver()

    def bob_sends(self, payload: bytes = b"from bob") -> list[bytes]:
        """Send a packet from Bob to Alice, and return the packets that Alice delivers."""
        self.bob.send_packet(self._headroom + ipv4_packet("10.0.0.2", "10.0.0.1", payload), self.now)
        self.transfer()
        return self.alice.packets_to_deliver()

    @property
    def _headroom(self) -> bytes:
        return bytes(self.alice.packet_headroom)

    def _next_deadline(self) -> float:
        deadlines = (self.alice.next_deadline(), self.bob.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=float("inf"))

    def _carry(self, sender: Device, sender_name: str, receiver: Device, receiver_name: str) -> Iterator[Sighting]:
        for endpoint, datagram in sender.datagrams_to_send():
            sighting = Sighting(self.now, sender_name, str(endpoint), datagram)
            self.wire.sightings.append(sighting)
            if endpoint == receiver_name and not self.loses(sighting):
                receiver.receive_datagram(datagram, sender_name, self.now)
            yield sighting


def drain_events(device: Device) -> list[Event]:
    """Take all events of a device, oldest first."""
    events = []
    while (event := device.next_event()) is not None:
        events.append(event)
    return events


def drops(device: Device) -> dict[DropReason, int]:
    """The number of drops of a device so far, by reason."""
    return dict(device.statistics().drops)
