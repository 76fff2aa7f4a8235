"""A policy applied at the entrance of the tunnel: every packet from the enclave's kernel either passes or is refused.

A flow is judged by its first packet. The gate remembers an allowed flow by its addresses and ports, so that later
packets need only one look-up. It remembers nothing else. The verdict on a network does not change, so a forgotten flow
is judged again with the same result.

Flows that began outside are remembered separately. An answer to such a flow passes whatever the policy says. A bare SYN
is never an answer: a packet forged by the relay therefore cannot open a connection that no rule allows.

In an enclave, a policy has no rules about names here: see `wgvsock.enclave.config`. On a relay without a packet filter
it may have some, and such a rule holds only while its pins last. There, every SYN is judged, and so is every datagram
until the flow is answered. From then on it counts as a flow from outside and continues as long as packets arrive.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.flows import MAX_FLOWS, IncomingFlows, Recent
from wgvsock.egress.names import Pins
from wgvsock.egress.policy import ECHO_REQUEST, ICMP, TCP, UDP, Packet, Policy, Site
from wgvsock.egress.reading import ACK, ECHO_REPLY, SYN, Reading, quoted, read, reversed_flow
from wgvsock.egress.refusal import refusal
from wgvsock.egress.verdict import Reason, judge

UDP_LIFETIME: Final = 120.0
ECHO_LIFETIME: Final = 30.0
"""Seconds, as in Linux connection tracking (nf_conntrack_udp_timeout_stream, nf_conntrack_icmp_timeout). A TCP
connection may be silent for days, so only a full table evicts it."""

MAX_ECHOES: Final = 256
"""Pings from outside that await an answer: the relay's own, and those from hosts that it lets in."""

MAX_DATAGRAMS: Final = 256
"""Datagrams whose later fragments may still arrive. The kernel hands over all fragments of a datagram in a row."""

MAX_REFUSED: Final = 64
"""Most recently refused destinations to remember: about as many lines as an operator's screen shows."""

UNREADABLE: Final = "unreadable"
"""Denied: a packet that `wgvsock.egress.reading` does not accept."""
FRAGMENT: Final = "fragment"
"""Denied: a later fragment of a datagram whose first fragment has not passed."""
NO_FLOW: Final = "no flow"
"""Denied: an ICMP error about an unknown flow, or an echo reply to an unknown request."""

_IPV4: Final = struct.Struct(">6xHxB2x12s").unpack_from
_IPV6: Final = struct.Struct(">6xBx36s").unpack_from
"""The fragment word (IPv4 only), the protocol, and the flow as in `Reading.flow`."""
_IPV4_ENDS: Final = struct.Struct(">6xHxB2x4s4s2s2s").unpack_from
_IPV6_ENDS: Final = struct.Struct(">6xBx16s16s2s2s").unpack_from
_PLAIN_IPV4: Final = 0x45
_FRAGMENTED: Final = 0x3FFF
"""More-fragments bit and offset (RFC 791, section 3.1)."""

_NO_NAMES: Final = Pins()


@dataclass(slots=True)
class Refused:
    """A destination that was refused.

    Attributes:
        destination: The address.
        protocol: IP protocol number.
        port: Destination port for TCP and UDP, or the ICMP type.
        by: What refused it last, as in `GateSnapshot.denied`.
        count: Number of refused packets.
        at: Time of the last refusal, on the gate's clock.
    """

    destination: IpAddress
    protocol: int
    port: int
    by: str
    count: int
    at: float

    @property
    def packet(self) -> Packet:
        """The packet as the policy judged it."""
        return Packet(self.destination, self.protocol, self.port)


@dataclass(frozen=True, slots=True)
class GateSnapshot:
    """What a gate has done so far.

    Attributes:
        allowed: Allowed flows, by the key of the rule that allowed them, such as ``allow 1``, or by another reason.
        denied: Refused packets, by the same keys and by other reasons.
        refused: The most recently refused destinations, the latest first.
        incoming: Number of flows from outside that the enclave may answer.
    """

    allowed: Mapping[str, int]
    denied: Mapping[str, int]
    refused: tuple[Refused, ...]
    incoming: int


class Gate:
    """Judges the packets of one tunnel. Times are in monotonic seconds.

    Args:
        policy: The rules to apply.
        answer: Receives a packet, with its headroom, that tells the kernel about a refusal.
        headroom: Bytes in front of each packet.
        pins: The addresses of the names in the policy.
        crowd: Called for each new flow that the policy allows. It returns None, or the limit that is reached. A flow
            over a limit is dropped without telling its sender.
    """

    def __init__(
        self,
        policy: Policy,
        answer: Callable[[memoryview], object],
        headroom: int = 0,
        *,
        pins: Pins = _NO_NAMES,
        crowd: Callable[[float], str | None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self._answer = answer
        self._headroom = headroom
        self._pins = pins
        self._crowd = crowd
        self._has_names = policy.has_names
        self._site = Site()
        self._tcp, self._udp = Recent(MAX_FLOWS), Recent(MAX_FLOWS)  # allowed flows that the enclave began
        self._incoming = {TCP: IncomingFlows(float("inf")), UDP: IncomingFlows(UDP_LIFETIME)}
        self._echoes = IncomingFlows(ECHO_LIFETIME, MAX_ECHOES)
        self._datagrams = Recent(MAX_DATAGRAMS)
        self._allowed: Counter[str] = Counter()
        self._denied: Counter[str] = Counter()
        self._refused: dict[tuple[IpAddress, int, int], Refused] = {}
        self._crowded: str | None = None  # the limit that stops the current packet, though the policy allows it

    def place(self, site: Site) -> None:
        """Set the site at which the policy applies. The default site has neither relay addresses nor name servers."""
        if site != self._site:
            self._site = site
            self._forget_known()

    def adopt(self, policy: Policy) -> None:
        """Apply another policy from now on."""
        if policy != self._policy:
            self._policy = policy
            self._has_names = policy.has_names
            self._forget_known()

    def forget(self) -> None:
        """Forget every flow: the programs that owned them are gone."""
        self._forget_known()
        for flows in (*self._incoming.values(), self._echoes):
            flows.clear()

    def _forget_known(self) -> None:
        """Forget what earlier rules allowed, so that it is judged again."""
        for known in (self._tcp, self._udp, self._datagrams):
            known.clear()

    def passes(self, packet: memoryview, now: float) -> bool:
        """Judge a packet that goes into the tunnel, and tell its sender if it is refused.

        Args:
            packet: One packet or super-packet with its headroom. A super-packet holds segments of one flow.
            now: The time, in seconds.

        Returns:
            Whether the packet may pass.
        """
        at = self._headroom
        try:
            if packet[at] == _PLAIN_IPV4:
                (fragment, protocol, flow), flags_at = _IPV4(packet, at), at + 33
            else:
                (protocol, flow), flags_at = _IPV6(packet, at), at + 53
                fragment = packet[at] >> 4 != 6
            if fragment & _FRAGMENTED:
                pass
            elif protocol == TCP:
                if flow in self._tcp.keys and not self._has_names:
                    return True
                if packet[flags_at] & (SYN | ACK) != SYN and (
                    flow in self._tcp.keys or self._incoming[TCP].answers(flow, now)
                ):
                    return True
            elif protocol == UDP and (flow in self._udp.keys or self._incoming[UDP].answers(flow, now)):
                return True
        except (struct.error, IndexError):
            pass  # too short for any flow
        return self._judge(packet[at:], now)

    def hears(self, packet: memoryview, now: float) -> None:
        """Record a packet that comes out of the tunnel, so that it may be answered.

        Args:
            packet: One packet or super-packet with its headroom.
            now: The time, in seconds.
        """
        at = self._headroom
        try:
            if packet[at] == _PLAIN_IPV4:
                fragment, protocol, source, destination, source_port, port = _IPV4_ENDS(packet, at)
            else:
                (protocol, source, destination, source_port, port), fragment = _IPV6_ENDS(packet, at), 0
        except (struct.error, IndexError):
            return
        incoming = self._incoming.get(protocol)
        if incoming is None or fragment & _FRAGMENTED:
            self._hear_other(packet[at:], now)
            return
        answer = destination + source + port + source_port
        if not incoming.refresh(answer, now) and answer not in self._known(protocol).keys:
            incoming.add(answer, now)

    def snapshot(self) -> GateSnapshot:
        """What has been allowed and refused so far."""
        return GateSnapshot(
            allowed=dict(self._allowed),
            denied=dict(self._denied),
            refused=tuple(reversed(self._refused.values())),
            incoming=sum(map(len, self._incoming.values())),
        )

    def _known(self, protocol: int) -> Recent:
        return self._tcp if protocol == TCP else self._udp

    def _hear_other(self, ip: memoryview, now: float) -> None:
        """Record an echo request, or a packet without the plain headers that `hears` reads."""
        reading = read(ip)
        if reading is None or reading.is_later:
            return
        answer = reversed_flow(reading.flow)
        if reading.protocol in self._incoming:
            incoming, known = self._incoming[reading.protocol], self._known(reading.protocol)
            if not incoming.refresh(answer, now) and answer not in known.keys:
                incoming.add(answer, now)
        elif reading.packet.kind == "icmp" and not self._echoes.refresh(answer, now):
            self._echoes.add(answer, now)

    def _judge(self, ip: memoryview, now: float) -> bool:
        self._crowded = None
        reading = read(ip)
        if reading is None:
            self._denied[UNREADABLE] += 1
            return False
        if reading.is_later:
            by = None if reading.datagram in self._datagrams.keys else FRAGMENT
        else:
            by = self._denial(reading, ip, now)
        if by is None:
            if reading.datagram:
                self._datagrams.add(reading.datagram)
            return True
        if by == self._crowded:
            self._denied[by] += 1
            return False
        self._refuse(reading, ip, by, now)
        return False

    def _denial(self, reading: Reading, ip: memoryview, now: float) -> str | None:
        """What denies a packet that has a transport header, or None if it may pass."""
        protocol, version = reading.protocol, reading.destination.version
        if protocol == ICMP[version] and reading.port != ECHO_REQUEST[version]:
            return self._denial_of_message(reading, ip, now)
        incoming = self._incoming.get(protocol)
        if incoming is not None and not reading.begins_connection and incoming.answers(reading.flow, now):
            return None
        verdict = judge(self._policy, self._pins, reading.packet, self._site, now)
        by = verdict.rule.key if verdict.rule is not None else verdict.reason.value
        if not verdict.allowed:
            return by
        self._crowded = self._crowd(now)
        if self._crowded is not None:
            return self._crowded
        self._allowed[by] += 1
        if incoming is not None and (protocol == TCP or not self._has_names):
            self._known(protocol).add(reading.flow)
        return None

    def _denial_of_message(self, reading: Reading, ip: memoryview, now: float) -> str | None:
        """As `_denial`, for ICMP messages other than echo requests."""
        if reading.port == ECHO_REPLY[reading.destination.version]:
            return None if self._echoes.answers(reading.flow, now) else NO_FLOW
        if not reading.is_error:
            return Reason.PROTOCOL.value
        about = quoted(reading, ip)
        if about is None:
            return NO_FLOW
        protocol, flow = about
        is_known = flow in self._known(protocol).keys or self._incoming[protocol].answers(flow, now)
        return None if is_known else NO_FLOW

    def refuse(self, packet: memoryview, by: str, now: float) -> None:
        """Refuse a packet that the policy allows, and tell its sender: its destination cannot be reached.

        Args:
            packet: The packet with its headroom.
            by: Why it is refused, as in `GateSnapshot.denied`.
            now: The time, in seconds.
        """
        ip = packet[self._headroom :]
        if (reading := read(ip)) is not None:
            self._refuse(reading, ip, by, now)

    def _refuse(self, reading: Reading, ip: memoryview, by: str, now: float) -> None:
        self._denied[by] += 1
        if not reading.destination.is_multicast:  # the kernel sends these itself, to find routers and groups
            self._remember(reading, by, now)
        told = refusal(reading, ip)
        if told is not None:
            self._answer(memoryview(bytes(self._headroom) + told))

    def _remember(self, reading: Reading, by: str, now: float) -> None:
        key = (reading.destination, reading.protocol, reading.port)
        before = self._refused.pop(key, None)
        if before is None and len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = Refused(*key, by, 1 if before is None else before.count + 1, now)
