"""The network settings that a relay assigns to its enclave, and the rules for them.

The enclave checks them, because anyone who connects first may send them, and because they become addresses, routes and
lines of ``resolv.conf``. The relay runs the same checks on its own configuration before it sends a request.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from wgvsock.addresses import IpAddress, IpInterface, IpNetwork
from wgvsock.provisioning.errors import ConfigRejectedError
from wgvsock.provisioning.messages import ConfigFields

MIN_MTU: Final = 1280
"""The smallest MTU of a link for IPv6 (RFC 8200, section 5)."""
MAX_MTU: Final = 65_535
MAX_KEEPALIVE: Final = 65_535
"""Seconds. ``wg`` uses 16 bits."""

_MAX_SEARCH: Final = 6  # names, and ...
_MAX_SEARCH_BYTES: Final = 256  # ... bytes including spaces: every resolver accepts these (resolv.conf(5))
_MAX_NAME: Final = 253  # RFC 1035, section 2.3.4, without the root's dot

_LOOPBACK: Final[tuple[IpNetwork, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

_RESERVED: Final = IPv4Network("240.0.0.0/4")
"""Reserved for future use, including the limited broadcast address (RFC 6890, section 2.2.2)."""

# One label: letters, digits and hyphens, no hyphen at either end, at most 63 (RFC 1123, section 2.1).
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""A label of a search domain: as in a host name (RFC 1123), plus underscores, which the DNS allows (RFC 2181, section
11) and resolvers accept."""


# resolv.conf(5). Deliberately excluded: trust-ad (the relay's name server could then vouch for DNSSEC), debug, and the
# obsolete inet6 family.
_RESOLVER_FLAGS: Final = frozenset(
    {"edns0", "no-aaaa", "no-reload", "no-tld-query", "rotate", "single-request", "single-request-reopen", "use-vc"}
)
_RESOLVER_NUMBERS: Final = {"ndots": range(16), "timeout": range(1, 31), "attempts": range(1, 6)}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """The network settings of an enclave.

    Attributes:
        addresses: 1 to 4 addresses of the enclave on wg0, with their prefix lengths.
        gateways: The relay's addresses in the tunnel, at most one of each family.
        mtu: MTU of wg0 in bytes.
        allowed_ips: 1 to 16 networks that the enclave routes to the relay.
        nameservers: Up to 3 name servers for resolv.conf.
        search: Up to 6 search domains for resolv.conf.
        resolver_options: Up to 8 options for resolv.conf.
        persistent_keepalive: Seconds. 0 means off.
        capabilities: The chosen framing and profile, which the relay's side of the exchange fills in.
    """

    addresses: tuple[IpInterface, ...]
    gateways: tuple[IpAddress, ...]
    mtu: int
    allowed_ips: tuple[IpNetwork, ...]
    nameservers: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    resolver_options: tuple[str, ...] = ()
    persistent_keepalive: int = 0
    capabilities: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check every rule.

        Raises:
            ConfigRejectedError: A rule is broken. The text names the rule and repeats nothing from the configuration.
        """
        _check_counts(self)
        _check_addresses(self.addresses)
        _check_gateways(self.gateways, self.addresses)
        _check_routes(self.allowed_ips)
        _check_numbers(self.mtu, self.persistent_keepalive)
        _check_resolver(self.nameservers, self.search, self.resolver_options)

    @classmethod
    def from_fields(cls, fields: ConfigFields) -> TunnelConfig:
        """Parse a received configuration, whose texts have to be in their canonical form.

        Raises:
            ConfigRejectedError: A text is not an address in its canonical form, or a rule of `validate` is broken.
        """
        config = cls(
            addresses=_parse_all(ipaddress.ip_interface, fields.addresses),
            gateways=_parse_all(ipaddress.ip_address, fields.gateways),
            mtu=fields.mtu,
            allowed_ips=_parse_all(ipaddress.ip_network, fields.allowed_ips),
            nameservers=_parse_all(ipaddress.ip_address, fields.nameservers),
            search=fields.search,
            resolver_options=fields.resolver_options,
            persistent_keepalive=fields.persistent_keepalive,
            capabilities=fields.capabilities,
        )
        config.validate()
        return config

    def to_fields(self) -> ConfigFields:
        """The configuration in the form in which it is sent."""
        return ConfigFields(
            addresses=tuple(map(str, self.addresses)),
            gateways=tuple(map(str, self.gateways)),
            mtu=self.mtu,
            allowed_ips=tuple(map(str, self.allowed_ips)),
            nameservers=tuple(map(str, self.nameservers)),
            search=self.search,
            resolver_options=self.resolver_options,
            persistent_keepalive=self.persistent_keepalive,
            capabilities=self.capabilities,
        )


def _parse_all(parse: Callable[[str], _T], texts: Iterable[str]) -> tuple[_T, ...]:
    return tuple(_parse(parse, text) for text in texts)


def _parse(parse: Callable[[str], _T], text: str) -> _T:
    try:
        value = parse(text)
    except ValueError:
        raise ConfigRejectedError("a text is not an IP address or prefix, or a route has host bits set") from None
    if str(value) != text:  # also refuses a netmask instead of a prefix length, and a missing prefix length
        raise ConfigRejectedError("an address or prefix is not in its canonical form")
    return value


def _check_counts(config: TunnelConfig) -> None:
    # The decoder enforces the same limits on received messages. These apply to the relay's own configuration.
    counts = (
        (config.addresses, 1, 4),
        (config.gateways, 1, 2),
        (config.allowed_ips, 1, 16),
        (config.nameservers, 0, 3),
        (config.search, 0, _MAX_SEARCH),
        (config.resolver_options, 0, 8),
    )
    if not all(low <= len(items) <= high for items, low, high in counts):
        raise ConfigRejectedError("there are too few or too many addresses, gateways, routes or resolver settings")


def _check_addresses(addresses: tuple[IpInterface, ...]) -> None:
    for interface in addresses:
        _check_host(interface.ip)
        network = interface.network
        if _is_edge(interface.ip, network):
            raise ConfigRejectedError("an address is its prefix's network or broadcast address")
        if network.prefixlen == 0 or _covers_loopback(network):
            raise ConfigRejectedError("the prefix of an address covers loopback addresses")
    if len({interface.ip for interface in addresses}) != len(addresses):
        raise ConfigRejectedError("an address occurs twice")


def _check_gateways(gateways: tuple[IpAddress, ...], addresses: tuple[IpInterface, ...]) -> None:
    for gateway in gateways:
        _check_host(gateway)
        if any(gateway == own.ip for own in addresses):
            raise ConfigRejectedError("a gateway is the enclave's own address")
        if not any(gateway in own.network and not _is_edge(gateway, own.network) for own in addresses):
            raise ConfigRejectedError("a gateway is not a host inside the prefix of any address")
    if len({gateway.version for gateway in gateways}) != len(gateways):
        raise ConfigRejectedError("there are two gateways of one family")


def _check_routes(routes: tuple[IpNetwork, ...]) -> None:
    # A default route is fine: the kernel consults its local table, which has the loopback addresses, first.
    if any(route.prefixlen > 0 and _covers_loopback(route) for route in routes):
        raise ConfigRejectedError("a route covers loopback addresses")
    if len(set(routes)) != len(routes):
        raise ConfigRejectedError("a route occurs twice")


def _check_numbers(mtu: int, keepalive: int) -> None:
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigRejectedError(f"the MTU is not from {MIN_MTU} to {MAX_MTU}")
    if not 0 <= keepalive <= MAX_KEEPALIVE:
        raise ConfigRejectedError(f"the keepalive interval is not from 0 to {MAX_KEEPALIVE}")


def _check_resolver(nameservers: tuple[IpAddress, ...], search: tuple[str, ...], options: tuple[str, ...]) -> None:
    for server in nameservers:
        # Resolvers of Kubernetes and AWS listen on IPv4 link-local addresses (169.254.20.10, 169.254.169.253). The
        # relay's routing decides whether they can be reached.
        if not (server.version == 4 and server.is_link_local):
            _check_host(server)
    if not all(_is_search_domain(name) for name in search):
        raise ConfigRejectedError("a search domain is not a name of letters, digits, hyphens and underscores")
    if len(" ".join(search)) > _MAX_SEARCH_BYTES:
        raise ConfigRejectedError(f"the search domains have more than {_MAX_SEARCH_BYTES} bytes in total")
    if not all(_is_resolver_option(option) for option in options):
        raise ConfigRejectedError("a resolver option is not on the list of allowed ones")


def _check_host(address: IpAddress) -> None:
    """Check that a host in the tunnel, or a name server beyond it, can have this address."""
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.is_unspecified
        or address in _RESERVED
    ):
        raise ConfigRejectedError("an address is loopback, multicast, link-local, unspecified or reserved")
    # ::ffff:127.0.0.1 is an IPv4 address in disguise, which never appears on a link (RFC 4291, section 2.5.5.2).
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):
        raise ConfigRejectedError("an IPv6 address is IPv4-mapped or scoped")


def _is_edge(address: IpAddress, network: IpNetwork) -> bool:
    """Whether this is an IPv4 network's first or last address, which are special except in a /31 (RFC 3021)."""
    return network.version == 4 and network.prefixlen < 31 and address in {network[0], network[-1]}


def _covers_loopback(network: IpNetwork) -> bool:
    return any(network.version == loopback.version and network.overlaps(loopback) for loopback in _LOOPBACK)


def _is_search_domain(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and all(_LABEL.fullmatch(label) for label in name.split("."))


def _is_resolver_option(option: str) -> bool:
    if option in _RESOLVER_FLAGS:
        return True
    name, _, number = option.partition(":")
    allowed = _RESOLVER_NUMBERS.get(name)
    # Only the canonical decimal form, not "ndots:+5" or "ndots:5\n".
    return allowed is not None and number in map(str, allowed)
