"""Default tunnel addresses: point-to-point links from a pool.

The pool must not overlap with networks that machines use. Most VPCs use RFC 1918 addresses. EKS may also give pods
addresses in 100.64.0.0/10 and 198.19.0.0/16 (EKS best practices, "Custom networking"), which rules out the paper's
100.64.254.0/24. 198.18.0.0/16 is the other half of the range for benchmarks (RFC 2544, section C.2.2). It is not routed
on the internet, and no AWS service is known to use it. The IPv6 prefix is a unique local one with a random global ID
(RFC 4193, section 3.2). If a machine uses one of these networks anyway, the relay names the overlap and does not start.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Final

from wgvsock.addresses import IpInterface, IpNetwork

POOL: Final[tuple[IpNetwork, ...]] = (ip_network("198.18.73.0/24"), ip_network("fddc:7f99:d74c::/64"))

MAX_LINKS: Final = 127
"""Links in the pool. The first pair is not used, because its first address looks like a network address."""


@dataclass(frozen=True, slots=True)
class Link:
    """The addresses of one tunnel, in a /31 (RFC 3021) and a /127 (RFC 6164).

    Attributes:
        relay: The relay's addresses.
        enclave: The enclave's addresses.
    """

    relay: tuple[IpInterface, ...]
    enclave: tuple[IpInterface, ...]


def link(place: int) -> Link:
    """The link at a place in the pool, from 0 to `MAX_LINKS` - 1."""
    first = 2 * (place + 1)
    ends = [
        tuple(ip_interface((network[first + end], network.max_prefixlen - 1)) for network in POOL) for end in (0, 1)
    ]
    return Link(*ends)


def numbered(interface: str | None) -> int | None:
    """The number in the name of an interface if the name is ``wg`` and digits, as a default name is, otherwise None."""
    number = "" if interface is None else interface.removeprefix("wg")
    return int(number) if number != interface and number.isdecimal() else None


def free_place(taken: set[int]) -> int:
    """The lowest place that is not taken."""
    return next(place for place in range(MAX_LINKS + len(taken)) if place not in taken)
