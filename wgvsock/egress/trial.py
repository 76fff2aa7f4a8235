"""Predicts what would happen if an enclave connected somewhere, for an operator who wants to know in advance."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.names import Pins, normalized, parse_pattern
from wgvsock.egress.policy import ECHO_REQUEST, ICMP, TCP, UDP, Packet, Policy, ProtocolName, Rule, Site
from wgvsock.egress.verdict import Reason, Verdict, judge
from wgvsock.errors import ConfigurationError

_SOMEWHERE: Final = ipaddress.ip_address("192.0.2.1")
"""A placeholder for the address of a name that has none yet. Only its packet's protocol and port are examined."""

PROTOCOLS: Final[Mapping[str, ProtocolName]] = {"tcp": "tcp", "udp": "udp", "icmp": "icmp"}

_FORMS: Final = "write www.example.com:443, 192.0.2.1:443 or [2001:db8::1]:443, and only the host for icmp"


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a flow.

    Attributes:
        host: An address, or a name in lower case and without the trailing dot.
        protocol: The protocol of its first packet. ``icmp`` means a ping.
        port: The destination port for TCP and UDP, 0 for ICMP.
    """

    host: str | IpAddress
    protocol: ProtocolName
    port: int = 0

    def __str__(self) -> str:
        """The text that `parse_destination` accepts."""
        host = f"[{self.host}]" if isinstance(self.host, ipaddress.IPv6Address) and self.port else str(self.host)
        return f"{host}:{self.port}" if self.port else host

    def packet(self, address: IpAddress) -> Packet:
        """The first packet to this address."""
        if self.protocol == "icmp":
            return Packet(address, ICMP[address.version], ECHO_REQUEST[address.version])
        return Packet(address, TCP if self.protocol == "tcp" else UDP, self.port)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The predicted outcome of a flow.

    Attributes:
        allowed: Whether the flow would pass.
        why: The reason, for people, such as ``denied by default``.
        address: The address, if the host is a name that has one now.
        unless: The rules that would change the outcome, depending on which address the name gets.
    """

    allowed: bool
    why: str
    address: IpAddress | None = None
    unless: tuple[Rule, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {
            "allowed": self.allowed,
            "why": self.why,
            "address": None if self.address is None else str(self.address),
            "unless": [str(rule) for rule in self.unless],
        }


def parse_destination(text: str, named: str) -> Destination:
    """Parse ``HOST:PORT``, or ``HOST`` for ICMP.

    Args:
        text: The host and the port.
        named: The protocol, one of `PROTOCOLS`.

    Raises:
        ConfigurationError: The text is not a destination, or the protocol is unknown.
    """
    protocol = PROTOCOLS.get(named)
    if protocol is None:
        raise _bad(text, f"the protocol is one of {', '.join(PROTOCOLS)}")
    host, colon, port = text, "", ""
    if protocol != "icmp":
        host, colon, port = text.rpartition(":")
        if not (colon and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 0xFFFF):
            raise _bad(text, "the port, from 1 to 65535, is missing")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if normalized(host).startswith("*"):
            raise _bad(text, "a pattern is not a destination") from None
        return Destination(parse_pattern(host).text, protocol, int(port or 0))
    if colon and (address.version == 6) != (bare != host):
        raise _bad(text, "square brackets enclose an IPv6 address that a port follows, and nothing else")
    return Destination(address, protocol, int(port or 0))


def _bad(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read the destination {text[:160]!r}", why=why, fix=_FORMS)


def outcomes(policy: Policy, pins: Pins, site: Site, destination: Destination, now: float) -> tuple[Outcome, ...]:
    """Predict what would happen. A name has one outcome for each address that it has now.

    Args:
        policy: The rules.
        pins: The addresses that names have.
        site: The addresses around the enclave.
        destination: Where the flow would go.
        now: Seconds on the clock of `pins`.
    """
    host = destination.host
    if not isinstance(host, str):
        return (_judged(judge(policy, pins, destination.packet(host), site, now)),)
    if not policy.allows_name(host):
        return (Outcome(allowed=False, why="denied as a name that no rule lets the enclave resolve"),)
    addresses = [pin.address for pin in pins.live(now) if pin.name == host]
    if not addresses:
        return (_by_name(policy, host, destination),)
    return tuple(_judged(judge(policy, pins, destination.packet(address), site, now), address) for address in addresses)


def _judged(verdict: Verdict, address: IpAddress | None = None) -> Outcome:
    return Outcome(verdict.allowed, str(verdict), address)


def _by_name(policy: Policy, name: str, destination: Destination) -> Outcome:
    """The outcome for a name that has no address yet."""
    packet = destination.packet(_SOMEWHERE)
    rule = None
    if policy.pins(name):
        matching = (each for each in policy.name_rules if each.name is not None and each.name.matches(name))
        rule = next((each for each in matching if each.is_about(packet)), None)
    allowed = rule is not None or policy.allows_by_default
    verdict = Verdict(allowed, Reason.DEFAULT if rule is None else Reason.RULE, rule)
    others = policy.deny if allowed else policy.allow
    unless = tuple(each for each in others if each.name is None and each.is_about(packet))
    return Outcome(allowed, str(verdict), unless=unless)
