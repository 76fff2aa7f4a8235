"""The network settings that a relay gives to its enclave, and the rules that they have to keep.

The enclave checks them because whoever connects first may send them, and because they end as addresses, routes and
lines of ``resolv.conf``. The relay runs the same checks on its own configuration before it asks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, TypeAlias, TypeVar

from wgvsock.provisioning.errors import ConfigRejectedError
from wgvsock.provisioning.messages import ConfigFields

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

MIN_MTU: Final = 1280
"""IPv6 runs over no smaller link (RFC 8200, section 5)."""
MAX_MTU: Final = 65_535
MAX_KEEPALIVE: Final = 65_535
"""Seconds; ``wg`` has 16 bits for it."""

_MAX_SEARCH: Final = 6  # names, and
_MAX_SEARCH_BYTES: Final = 256  # bytes with the spaces between them: what every resolver accepts (resolv.conf(5))
_MAX_NAME: Final = 253  # RFC 1035, section 2.3.4, without the root's dot

_LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

_RESERVED: Final = IPv4Network("240.0.0.0/4")
"""For future use, with the limited broadcast address (RFC 6890, section 2.2.2)."""

# One label: letters, digits and hyphens, no hyphen at either end, at most 63 (RFC 1123, section 2.1).
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

# resolv.conf(5). Left out on purpose: trust-ad (it would let the relay's name server vouch for DNSSEC), debug, the
# obsolete inet6 family.
_RESOLVER_FLAGS: Final = frozenset(
    {"edns0", "no-aaaa", "no-reload", "no-tld-query", "rotate", "single-request", "single-request-reopen", "use-vc"}
)
_RESOLVER_NUMBERS: Final = {"ndots": range(16), "timeout": range(1, 31), "attempts": range(1, 6)}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """What the enclave sets up.

    Attributes:
        addresses: The enclave's addresses on wg0, with their prefixes; 1 to 4.
        gateways: The relay's address in the tunnel, at most one of each family.
        mtu: wg0's MTU in bytes.
        allowed_ips: What the enclave routes to the relay; 1 to 16.
        nameservers: For resolv.conf; up to 3.
        search: Search domains for resolv.conf; up to 6.
        resolver_options: Options for resolv.conf; up to 8.
        persistent_keepalive: Seconds, 0 is off.
        capabilities: The chosen framing and profile; the relay's side of the exchange fills them in.
    """

    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...]
    mtu: int
    allowed_ips: tuple[Network, ...]
    nameservers: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    resolver_options: tuple[str, ...] = ()
    persistent_keepalive: int = 0
    capabilities: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check every rule.

        Raises:
            ConfigRejectedError: One does not hold. The text names the rule and repeats nothing of the configuration.
        """
        _check_counts(self)
        _check_addresses(self.addresses)
        _check_gateways(self.gateways, self.addresses)
        _check_routes(self.allowed_ips)
        _check_numbers(self.mtu, self.persistent_keepalive)
        _check_resolver(self.nameservers, self.search, self.resolver_options)

    @classmethod
    def from_fields(cls, fields: ConfigFields) -> TunnelConfig:
        """Understand the texts of a received configuration, each accepted in its canonical form only.

        Raises:
            ConfigRejectedError: A text is no address, or a rule of `validate` does not hold.
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
        """The configuration as it travels."""
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
        raise ConfigRejectedError("a text is no IP address or prefix, or a route has host bits set") from None
    if str(value) != text:  # also refuses a netmask for a prefix length, and a missing prefix length
        raise ConfigRejectedError("an address or prefix is not in its canonical form")
    return value


def _check_counts(config: TunnelConfig) -> None:
    # The decoder holds what arrives to the same counts; here they are for the relay's own configuration.
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


def _check_addresses(addresses: tuple[Interface, ...]) -> None:
    for interface in addresses:
        _check_host(interface.ip)
        network = interface.network
        if _is_edge(interface.ip, network):
            raise ConfigRejectedError("an address is its prefix's network or broadcast address")
        if network.prefixlen == 0 or _covers_loopback(network):
            raise ConfigRejectedError("an address's prefix takes in the loopback addresses")
    if len({interface.ip for interface in addresses}) != len(addresses):
        raise ConfigRejectedError("an address occurs twice")


def _check_gateways(gateways: tuple[Address, ...], addresses: tuple[Interface, ...]) -> None:
    for gateway in gateways:
        _check_host(gateway)
        if any(gateway == own.ip for own in addresses):
            raise ConfigRejectedError("a gateway is the enclave's own address")
        if not any(gateway in own.network and not _is_edge(gateway, own.network) for own in addresses):
            raise ConfigRejectedError("a gateway is not a host inside the prefix of any address")
    if len({gateway.version for gateway in gateways}) != len(gateways):
        raise ConfigRejectedError("there are two gateways of one family")


def _check_routes(routes: tuple[Network, ...]) -> None:
    # A default route is welcome: the kernel's local table, which holds the loopback addresses, is asked first.
    if any(route.prefixlen > 0 and _covers_loopback(route) for route in routes):
        raise ConfigRejectedError("a route goes over loopback addresses")
    if len(set(routes)) != len(routes):
        raise ConfigRejectedError("a route occurs twice")


def _check_numbers(mtu: int, keepalive: int) -> None:
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigRejectedError(f"the MTU is not from {MIN_MTU} to {MAX_MTU}")
    if not 0 <= keepalive <= MAX_KEEPALIVE:
        raise ConfigRejectedError(f"the keepalive interval is not from 0 to {MAX_KEEPALIVE}")


def _check_resolver(nameservers: tuple[Address, ...], search: tuple[str, ...], options: tuple[str, ...]) -> None:
    for server in nameservers:
        # Kubernetes' and Amazon's resolvers listen on IPv4 link-local addresses (169.254.20.10, 169.254.169.253); the
        # relay's routing decides whether they can be reached.
        if not (server.version == 4 and server.is_link_local):
            _check_host(server)
    if not all(_is_host_name(name) for name in search):
        raise ConfigRejectedError("a search domain is no host name of letters, digits and hyphens")
    if len(" ".join(search)) > _MAX_SEARCH_BYTES:
        raise ConfigRejectedError(f"the search domains have more than {_MAX_SEARCH_BYTES} bytes in all")
    if not all(_is_resolver_option(option) for option in options):
        raise ConfigRejectedError("a resolver option is not on the list of allowed ones")


def _check_host(address: Address) -> None:
    """The address is one that a host on a tunnel, or a name server behind it, can have."""
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.is_unspecified
        or address in _RESERVED
    ):
        raise ConfigRejectedError("an address is loopback, multicast, link-local, unspecified or reserved")
    # ::ffff:127.0.0.1 is an IPv4 address in disguise; such never appear on a link (RFC 4291, section 2.5.5.2).
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):
        raise ConfigRejectedError("an IPv6 address is IPv4-mapped or scoped")


def _is_edge(address: Address, network: Network) -> bool:
    """Whether this is the network's first or last IPv4 address, where those are special (not on /31, RFC 3021)."""
    return network.version == 4 and network.prefixlen < 31 and address in {network[0], network[-1]}


def _covers_loopback(network: Network) -> bool:
    return any(network.version == loopback.version and network.overlaps(loopback) for loopback in _LOOPBACK)


def _is_host_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and all(_LABEL.fullmatch(label) for label in name.split("."))


def _is_resolver_option(option: str) -> bool:
    if option in _RESOLVER_FLAGS:
        return True
    name, _, number = option.partition(":")
    allowed = _RESOLVER_NUMBERS.get(name)
    # The canonical decimal form, so that "ndots:+5" or "ndots:5\n" is none.
    return allowed is not None and number in map(str, allowed)
