"""What a relay requires of the packet filter, independent of the tool.

Every relay owns its rules, so that many relays can share one network namespace. A packet from the enclave passes these
steps in order: the check of its interface, the policy, MSS clamping, MASQUERADE. A packet for the enclave passes DNAT
first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from wgvsock.addresses import IpAddress, IpNetwork
from wgvsock.egress.closed import within
from wgvsock.egress.policy import Policy, Rule
from wgvsock.system.facts import Fact

TUNNEL_GROUP: Final = 51820
"""Interface group (``group`` in ``ip link``) of every relay's tunnel. A relay's rule that stops forwarding uses it to
leave the tunnels of other relays alone."""


ROUTED_MARK: Final = 0x2000
"""Bit of a packet's mark: our rules are in force, and the packet may be routed (see `wgvsock.system.routing_rule`). It
is set from the end of prerouting to the beginning of forwarding. Neither Kubernetes, the VPC CNI, Calico, Cilium nor
Istio routes by it."""
ICMP_ERRORS: Final[dict[int, tuple[int, ...]]] = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
"""ICMP types that report an error about another packet, by IP version: RFC 792 without redirects and source quench,
RFC 4443."""


class Crowd(Enum):
    """What the rules count in addition to verdicts."""

    NEW_FLOWS = "too many new flows"
    FLOWS = "too many flows"
    FOREIGN_ERRORS = "errors about flows of others"


@dataclass(frozen=True, slots=True)
class Element:
    """An address of a name that a rule allows.

    Attributes:
        rule: The rule.
        address: The address.
        seconds: Seconds until it expires. 0 or less removes it.
        name: The name that has the address, stored for a relay that finds these rules after this one was killed. Empty
            to store no name.
    """

    rule: Rule
    address: IpAddress
    seconds: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class HeldPin:
    """An address of a name, as stored in rules.

    Attributes:
        name: The name that was looked up.
        address: The address.
        seconds: Seconds until it expires.
    """

    name: str
    address: IpAddress
    seconds: float


PUBLISHED: Final = "published"
"""Kind of the fact that a port leads to the enclave."""

_PUBLISHED_FACT: Final = re.compile(r"(tcp|udp)/(\d{1,5}) ([0-9a-f.:]+)/(\d{1,5})")
_FACT: Final = re.compile(r'comment "before (\S+) (\S+) ([^"\s]+)"')


def facts_in(listing: str) -> tuple[Fact, ...]:
    """The facts in a listing by nft or iptables-save."""
    return tuple(Fact(*found.groups()) for found in _FACT.finditer(listing))


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the uplink whose packets go to the enclave (paper, listing 2). The client's address is preserved."""

    protocol: Literal["tcp", "udp"]
    port: int
    destination: IpAddress
    destination_port: int

    def fact(self) -> Fact:
        """The fact that the rules store about a published port: the next relay may have to withdraw it."""
        return Fact(PUBLISHED, f"{self.protocol}/{self.port}", f"{self.destination}/{self.destination_port}")

    @property
    def other_ports(self) -> tuple[int, int] | None:
        """First and last source port for packets from a withdrawn port, or None if they may keep theirs.

        Without a given port range, MASQUERADE keeps the enclave's port whenever it is free.
        """
        if self.port != self.destination_port:
            return None
        return (32768, 65535) if self.port < 32768 else (1024, 32767)


def published_in(facts: Iterable[Fact]) -> Iterator[PublishedPort]:
    """The published ports among facts."""
    for fact in facts:
        if fact.kind == PUBLISHED and (found := _PUBLISHED_FACT.fullmatch(f"{fact.target} {fact.value}")):
            protocol, port, destination, destination_port = found.groups()
            with contextlib.suppress(ValueError):  # not a valid address
                yield PublishedPort(
                    "tcp" if protocol == "tcp" else "udp", int(port), ip_address(destination), int(destination_port)
                )


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the relay's packet filter has to do.

    Attributes:
        owner: Name of the relay, which is part of the names of its table and chains.
        tunnel: The relay's WireGuard interface.
        uplinks: The outgoing interface by IP version. An IP version without one is not forwarded.
        sources: The enclave's prefixes. Their packets pass through the tunnel or not at all, in every state. After a
            crash of the relay the tunnel's route is gone, and the kernel would otherwise send the enclave's packets to
            the uplink in clear.
        is_open: Whether to forward. If not, nothing is forwarded and no new flow is translated, but known flows keep
            their translation. Without the rules the kernel would take their packets for its own and reset them.
        masquerade: Hide the enclave's prefixes behind the uplink's address (paper, listing 1).
        published: Ports of the uplink that lead to the enclave.
        policy: What the enclave may reach. On the relay's own machine it reaches only name servers and ping, unless a
            rule allows more: health checks and other containers of the pod listen there.
        resolvers: DNS servers. Their port 53 is reachable even if the address is in a closed network or is the relay's.
        relay: The relay's own addresses in the tunnel. Nobody outside has them.
        max_new_flows: Number of flows that the enclave may open per second.
        max_flows: Number of flows that it may have open. The machine's table of connection tracking is bounded.
        confined: IP versions that this machine did not forward before a relay came. For these, only packets of tunnels
            are forwarded. The forwarding of other versions is left alone.
        before: Former values of the switches that a relay changes: see `Fact`.
        enclave: The enclave's own addresses.
        draining: Another enclave is taking over: no port leads to this one, and its present clients stay connected.
        withdrawn: Ports that no longer lead to the enclave. Packets that the enclave still sends to a former client
            leave from another port. With the old port, they would be taken for answers of the published one, and the
            client's packets for replies to them.
    """

    owner: str
    tunnel: str
    uplinks: tuple[tuple[int, str], ...]
    sources: tuple[IpNetwork, ...]
    is_open: bool = True
    masquerade: bool = True
    published: tuple[PublishedPort, ...] = ()
    policy: Policy = field(default_factory=Policy)
    resolvers: tuple[IpAddress, ...] = ()
    relay: tuple[IpAddress, ...] = ()
    max_new_flows: int = 1000
    max_flows: int = 16_384
    confined: frozenset[int] = frozenset()
    before: tuple[Fact, ...] = ()
    enclave: tuple[IpAddress, ...] = ()
    draining: bool = False
    withdrawn: tuple[PublishedPort, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions of the enclave."""
        return tuple(sorted({network.version for network in self.sources}))

    @property
    def forwarders(self) -> tuple[IpAddress, ...]:
        """Name servers that are the relay itself."""
        return tuple(resolver for resolver in self.resolvers if resolver in self.relay)

    @property
    def bound(self) -> tuple[IpNetwork, ...]:
        """Networks bound to the tunnel: the enclave's prefixes and the relay's own addresses."""
        ends = (ip_network(address) for address in self.relay)
        outside = (end for end in ends if not any(within(end, network) for network in self.sources))
        return (*self.sources, *outside)

    @property
    def uplink_names(self) -> tuple[str, ...]:
        """The uplink interfaces, each once."""
        return tuple(dict.fromkeys(name for _, name in self.uplinks))

    def uplink(self, version: int) -> str | None:
        """The uplink interface of an IP version, or None."""
        return dict(self.uplinks).get(version)
