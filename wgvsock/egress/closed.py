"""Networks that stay closed whatever the policy's default is, in every notation of their addresses.

A rule opens such a network by naming it, or a network within it. A wider network, such as 0.0.0.0/0, does not open it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final

from wgvsock.addresses import IpAddress, IpNetwork

EMBEDDINGS: Final[tuple[IPv6Network, ...]] = (
    IPv6Network("64:ff9b::/96"),  # NAT64's well-known prefix (RFC 6052), which a NAT gateway of a VPC translates
    IPv6Network("64:ff9b:1::/96"),  # the first of NAT64's local prefixes (RFC 8215)
    IPv6Network("2002::/16"),  # 6to4 (RFC 3056)
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated (RFC 2765)
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291, 2.5.5.1)
)
"""Prefixes of IPv6 addresses that embed an IPv4 address, which a translator on the path may extract."""

_CLOSED_IPV4: Final = (
    # Link-local: the instance metadata service at 169.254.169.254 (EC2 user guide, "Instance metadata"), the ECS agent
    # at 169.254.170.2 and the EKS Pod Identity Agent at 169.254.170.23 (EKS user guide) hand out credentials of the
    # node or the pod, not of the enclave.
    IPv4Network("169.254.0.0/16"),
    # Loopback and "this host", on whichever machine receives the packet (RFC 1122, 3.2.1.3). A kernel delivers them
    # with net.ipv4.conf.*.route_localnet, which kube-proxy sets.
    IPv4Network("127.0.0.0/8"),
    IPv4Network("0.0.0.0/8"),
)

_CLOSED_IPV6: Final = (
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),  # EC2's counterpart of link-local: metadata at ::254, pod identity at ::23
    IPv6Network("::1/128"),
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped: never on the wire (RFC 4291, 2.5.5.2), but IPv4 to many programs
)


@functools.lru_cache(maxsize=1024)  # asked about the relay's own networks and addresses for every DNS answer
def spellings(network: IpNetwork) -> tuple[IpNetwork, ...]:
    """The network itself and, if it is IPv4, every IPv6 network that embeds it (see `EMBEDDINGS`)."""
    return (network, *_embedded(network)) if isinstance(network, IPv4Network) else (network,)


def _embedded(network: IPv4Network) -> Iterator[IPv6Network]:
    for prefix in EMBEDDINGS:
        room = 128 - prefix.prefixlen - 32  # bits behind the IPv4 address
        value = int(prefix.network_address) | int(network.network_address) << room
        yield IPv6Network((value, prefix.prefixlen + network.prefixlen))


def _all() -> Iterator[IpNetwork]:
    yield from _CLOSED_IPV4
    # An nft set refuses overlapping networks, and the ones embedded in ::/96 overlap ::1/128.
    yield from collapse_addresses([*_CLOSED_IPV6, *(wide for one in _CLOSED_IPV4 for wide in _embedded(one))])


CLOSED_NETWORKS: Final[tuple[IpNetwork, ...]] = tuple(_all())
"""No two of them overlap."""


def closed_network(address: IpAddress) -> IpNetwork | None:
    """The closed network that contains the address, or None."""
    return next((network for network in CLOSED_NETWORKS if contains(network, address)), None)


def contains(network: IpNetwork, address: IpAddress) -> bool:
    """Whether the network contains the address. It contains no address of the other family."""
    return network.version == address.version and address in network


def within(inner: IpNetwork, outer: IpNetwork) -> bool:
    """Whether `inner` equals `outer` or lies within it. It never lies within a network of the other family."""
    return contains(outer, inner.network_address) and inner.prefixlen >= outer.prefixlen


def opens_closed(network: IpNetwork) -> bool:
    """Whether a rule for this network opens a closed network, or a part of one."""
    return any(within(network, closed) for closed in CLOSED_NETWORKS)


@functools.lru_cache(maxsize=1024)
def spelled_addresses(address: IpAddress) -> tuple[IpAddress, ...]:
    """The address itself and, if it is IPv4, every IPv6 address that embeds it. See `spellings`."""
    return tuple(network.network_address for network in spellings(ip_network(address)))
