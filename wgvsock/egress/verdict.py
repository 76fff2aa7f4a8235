"""The verdict on a flow: its first packet is judged, and the rest of its packets are treated alike.

The rules are applied in the same order as in the relay's packet filter (`wgvsock.system.filter`). A table of cases
(tests/egress_cases.py) tests both. Replies, and ICMP errors about allowed flows, are not first packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wgvsock.addresses import DNS_PORT, IpAddress
from wgvsock.egress.closed import closed_network
from wgvsock.egress.names import Pins
from wgvsock.egress.policy import Packet, Policy, Rule, Site


class Reason(Enum):
    """What a verdict is based on."""

    RULE = "rule"
    DEFAULT = "default"
    RESOLVER = "resolver"
    """The packet is a DNS query to one of the enclave's name servers."""
    RELAY_PING = "relay ping"
    PROTOCOL = "protocol"
    """The packet is neither TCP nor UDP nor an ICMP echo request."""
    CLOSED = "closed network"
    """See `wgvsock.egress.closed`."""
    RELAY = "relay machine"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about a flow.

    Attributes:
        allowed: Whether the flow passes.
        reason: Why it passes, or why it does not.
        rule: The rule that decided, if there is one.
    """

    allowed: bool
    reason: Reason
    rule: Rule | None = None

    def __str__(self) -> str:
        """For people, such as ``denied by default``."""
        by = {
            Reason.RULE: f'by rule "{self.rule}"',
            Reason.DEFAULT: "by default",
            Reason.RESOLVER: "as a name server of the enclave",
            Reason.RELAY_PING: "as a ping to the relay",
            Reason.PROTOCOL: "as neither TCP nor UDP nor an ICMP echo request",
            Reason.CLOSED: "as a closed network that no rule opens",
            Reason.RELAY: "as the relay's own machine",
        }
        return f"{'allowed' if self.allowed else 'denied'} {by[self.reason]}"


def judge(policy: Policy, pins: Pins, packet: Packet, site: Site, now: float) -> Verdict:
    """Judge a flow by its first packet.

    Args:
        policy: The rules.
        pins: The addresses that names have.
        packet: The first packet.
        site: The addresses around the enclave.
        now: Seconds on the clock of `pins`.
    """
    destination = packet.destination
    if packet.kind is None:
        return Verdict(allowed=False, reason=Reason.PROTOCOL)
    if packet.kind != "icmp" and packet.port == DNS_PORT and destination in site.resolvers:
        return Verdict(allowed=True, reason=Reason.RESOLVER)
    is_relay = destination in site.relay
    if is_relay and packet.kind == "icmp":
        return Verdict(allowed=True, reason=Reason.RELAY_PING)
    for rule in policy.deny:
        if rule.is_about(packet) and (rule.covers(destination) or (rule.relay and is_relay)):
            return Verdict(allowed=False, reason=Reason.RULE, rule=rule)
    is_closed = closed_network(destination) is not None
    for rule in policy.allow:
        if rule.is_about(packet) and _allows(rule, destination, pins, now, is_relay=is_relay, is_closed=is_closed):
            return Verdict(allowed=True, reason=Reason.RULE, rule=rule)
    if is_closed:
        return Verdict(allowed=False, reason=Reason.CLOSED)
    if is_relay:
        return Verdict(allowed=False, reason=Reason.RELAY)
    return Verdict(allowed=policy.allows_by_default, reason=Reason.DEFAULT)


def _allows(rule: Rule, destination: IpAddress, pins: Pins, now: float, *, is_relay: bool, is_closed: bool) -> bool:
    if is_relay:
        return rule.relay and not is_closed
    if is_closed:
        return rule.opens_closed and rule.covers(destination)
    if rule.name is not None:
        return any(rule.name.matches(name) for name in pins.names(destination, now))
    return rule.covers(destination)
