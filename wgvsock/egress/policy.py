"""The rules of a policy, and what each rule matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from wgvsock.addresses import IpAddress, IpNetwork
from wgvsock.egress.closed import closed_network, contains, opens_closed, spelled_addresses, spellings
from wgvsock.egress.names import NamePattern

ProtocolName = Literal["tcp", "udp", "icmp"]

TCP: Final = 6
UDP: Final = 17
ICMP: Final = {4: 1, 6: 58}
"""Protocol number by IP version."""
ECHO_REQUEST: Final = {4: 8, 6: 128}
"""ICMP type by IP version."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What a policy looks at in a flow's first packet.

    Attributes:
        destination: The address as the sender wrote it, before any translation.
        protocol: IP protocol number; for IPv6, the one after the extension headers.
        port: Destination port for TCP and UDP, or the ICMP type.
    """

    destination: IpAddress
    protocol: int
    port: int = 0

    @property
    def kind(self) -> ProtocolName | None:
        """The protocol as rules name it, or None if no rule can match such a packet."""
        version = self.destination.version
        if self.protocol == TCP:
            return "tcp"
        if self.protocol == UDP:
            return "udp"
        is_echo = self.protocol == ICMP[version] and self.port == ECHO_REQUEST[version]
        return "icmp" if is_echo else None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, with exactly one target: `name`, `network` or `relay`.

    Attributes:
        allows: Whether the rule allows; otherwise it denies.
        position: Position in its list, that of allow rules or of deny rules, counted from 1.
        protocols: The protocols that it matches. ICMP means echo requests only.
        ports: The destination ports of TCP and UDP that it matches; empty means all.
        name: Matches the addresses that are pinned to names of this pattern.
        network: Matches the addresses of this network.
        relay: Matches the relay's own machine.
    """

    allows: bool
    position: int
    protocols: frozenset[ProtocolName]
    ports: tuple[int, ...] = ()
    name: NamePattern | None = None
    network: IpNetwork | None = None
    relay: bool = False

    @property
    def key(self) -> str:
        """Identifies the rule within its policy, such as ``allow 1``."""
        return f"{'allow' if self.allows else 'deny'} {self.position}"

    def __str__(self) -> str:
        """For people, such as ``allow tcp 443 to www.example.com``."""
        kinds = "any" if len(self.protocols) == 3 else "/".join(sorted(self.protocols))
        ports = " " + ",".join(map(str, self.ports)) if self.ports else ""
        return f"{'allow' if self.allows else 'deny'} {kinds}{ports} to {self.target}"

    @property
    def target(self) -> str:
        """The target as text for people."""
        return "the relay's machine" if self.relay else str(self.name or self.network)

    @property
    def networks(self) -> tuple[IpNetwork, ...]:
        """The networks that it matches. A deny rule for an IPv4 network also denies the IPv6 networks that embed it."""
        if self.network is None:
            return ()
        return (self.network,) if self.allows else spellings(self.network)

    @property
    def opens_closed(self) -> bool:
        """Whether it allows a closed network. See `wgvsock.egress.closed`."""
        return self.allows and self.network is not None and opens_closed(self.network)

    def is_about(self, packet: Packet) -> bool:
        """Whether the rule matches the packet's protocol and port."""
        return packet.kind in self.protocols and (not self.ports or packet.kind == "icmp" or packet.port in self.ports)

    def covers(self, address: IpAddress) -> bool:
        """Whether the rule's network contains the address."""
        return any(contains(network, address) for network in self.networks)


@dataclass(frozen=True, slots=True)
class Site:
    """The addresses around the enclave that a policy refers to.

    Attributes:
        relay: The addresses of the relay's own machine, including its tunnel addresses.
        resolvers: The enclave's name servers.
        tunnels: The prefixes of tunnels.
    """

    relay: frozenset[IpAddress] = frozenset()
    resolvers: frozenset[IpAddress] = frozenset()
    tunnels: tuple[IpNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What an enclave may reach.

    Attributes:
        allows_by_default: Whether a flow that no rule matches is allowed.
        allow: Rules that allow.
        deny: Rules that deny. They take precedence over `allow`.
    """

    allows_by_default: bool = True
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()

    @property
    def has_names(self) -> bool:
        """Whether a rule has a name, so that the enclave's DNS queries have to be inspected."""
        return any(rule.name is not None for rule in (*self.allow, *self.deny))

    @property
    def name_rules(self) -> tuple[Rule, ...]:
        """The rules that allow names."""
        return tuple(rule for rule in self.allow if rule.name is not None)

    def pins(self, name: str) -> bool:
        """Whether a rule allows the addresses of a name, given as `wgvsock.egress.names.normalized` returns it."""
        return _matches(self.allow, name) and not _matches(self.deny, name)

    def rules_of(self, name: str) -> list[Rule]:
        """The rules that allow the addresses of a name. A denied name has none."""
        if _matches(self.deny, name):
            return []
        return [rule for rule in self.allow if rule.name is not None and rule.name.matches(name)]

    def allows_name(self, name: str) -> bool:
        """Whether the enclave may ask for a name. A policy without names in its rules restricts no queries."""
        return not self.has_names or self.allows_by_default or self.pins(name)

    def may_tell(self, address: IpAddress, site: Site) -> bool:
        """Whether a DNS answer may contain this address.

        An address in a closed network, in a tunnel or of the relay's own machine may not: it would let a name reach
        what only a rule for an address opens (DNS rebinding). Closed networks and the relay may appear if a rule allows
        them.
        """
        if closed_network(address) is not None:
            return any(rule.opens_closed and rule.covers(address) for rule in self.allow)
        own = {spelled for one in site.relay for spelled in spelled_addresses(one)}
        if address in own:
            return any(rule.relay for rule in self.allow)
        return not any(contains(spelled, address) for one in site.tunnels for spelled in spellings(one))


def _matches(rules: tuple[Rule, ...], name: str) -> bool:
    return any(rule.name is not None and rule.name.matches(name) for rule in rules)
