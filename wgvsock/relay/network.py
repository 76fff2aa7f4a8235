"""The relay's end of the tunnel in the kernel, and the settings for the enclave that follow from where the relay is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final, TypeVar

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import TunnelConfig
from wgvsock.provisioning.errors import ConfigRejectedError
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.errors import UplinkError
from wgvsock.settings import IpAddress, IpNetwork
from wgvsock.system.netlink import Netlink, Route
from wgvsock.system.resolver import ResolverSettings

_EVERYTHING: Final[dict[int, IpNetwork]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Uplink:
    """The way to the world: interface, MTU in bytes, and the IP versions that have a default route through any."""

    name: str
    mtu: int
    versions: frozenset[int]


async def find_uplink(netlink: Netlink, configured: str | None) -> Uplink:
    """The configured interface, or the default route's.

    Raises:
        UplinkError: There is none.
        NetlinkSetupError: The configured one does not exist.
    """
    defaults = {version: await netlink.default_interface(version) for version in (4, 6)}
    name = configured or defaults[4] or defaults[6]
    if name is None:
        raise UplinkError(
            "cannot find the interface that leads to the world",
            why="there is no default route",
            fix='name it as "uplink" in [nat]',
        )
    versions = frozenset(version for version, interface in defaults.items() if interface == name)
    return Uplink(name, (await netlink.interface(name)).mtu, versions)


def make_tunnel_config(config: RelayConfig, uplink: Uplink, own_resolver: ResolverSettings) -> TunnelConfig:
    """What the enclave is told.

    Raises:
        ConfigurationError: It breaks a rule that the enclave would hold it to.
    """
    plain = TunnelConfig(
        addresses=config.enclave.addresses,
        gateways=tuple(_gateways(config)),
        mtu=config.interface.mtu or min(uplink.mtu, 65535),
        allowed_ips=config.enclave.routes or tuple(_default_routes(config, uplink)),
        persistent_keepalive=config.interface.persistent_keepalive,
    )
    dns = config.dns
    try:
        plain.validate()
        # What the operator wrote has to be right; of what is copied from the relay's own resolv.conf, only what makes
        # sense in the enclave is passed on: no name server on this machine's loopback, no unknown option.
        tunnel = replace(
            plain, nameservers=dns.servers or (), search=dns.search or (), resolver_options=dns.options or ()
        )
        tunnel.validate()
    except ConfigRejectedError as error:
        raise ConfigurationError("the enclave would refuse its settings", why=error.why, fix=error.fix) from error
    if dns.servers is None:
        servers = _valid(own_resolver.servers, 3, lambda values: replace(tunnel, nameservers=values))
        tunnel = replace(tunnel, nameservers=servers)
    if dns.search is None:
        search = _valid(own_resolver.search, 6, lambda values: replace(tunnel, search=values))
        tunnel = replace(tunnel, search=search)
    if dns.options is None:
        options = _valid(own_resolver.options, 8, lambda values: replace(tunnel, resolver_options=values))
        tunnel = replace(tunnel, resolver_options=options)
    return tunnel


def _gateways(config: RelayConfig) -> Iterable[IpAddress]:
    """The relay's first address of each family that lies in a prefix of the enclave."""
    seen: set[int] = set()
    for own in config.interface.addresses:
        if own.version not in seen and any(own.ip in address.network for address in config.enclave.addresses):
            seen.add(own.version)
            yield own.ip


def _default_routes(config: RelayConfig, uplink: Uplink) -> Iterable[IpNetwork]:
    versions = {address.version for address in config.enclave.addresses}
    return (_EVERYTHING[version] for version in sorted(versions & uplink.versions or versions))


def _valid(values: Iterable[_T], limit: int, apply: Callable[[tuple[_T, ...]], TunnelConfig]) -> tuple[_T, ...]:
    """The values, up to `limit`, that the enclave accepts together."""
    kept: tuple[_T, ...] = ()
    for value in values:
        try:
            apply((*kept, value)).validate()
        except ConfigRejectedError as error:
            _log.info("left %s of the own resolv.conf out: %s", value, error.why)
        else:
            kept = (*kept, value)
    return kept[:limit]


def enclave_hosts(config: RelayConfig) -> tuple[IpNetwork, ...]:
    """The enclave's addresses alone: its allowed IPs, and nothing else may come from it."""
    return tuple(ip_network(address.ip) for address in config.enclave.addresses)


async def set_up_tunnel(netlink: Netlink, config: RelayConfig, mtu: int) -> None:
    """Bring the TUN interface up with addresses, and routes to what no address's prefix covers.

    Raises:
        NetlinkSetupError: The kernel refused.
    """
    name = config.interface.name
    await netlink.bring_up(name, mtu=mtu, queue_length=config.interface.queue_length)
    await netlink.set_addresses(name, config.interface.addresses)
    on_link = [own.network for own in config.interface.addresses]
    routes = [
        Route(host)
        for host in enclave_hosts(config)
        if not any(network.version == host.version and host[0] in network for network in on_link)
    ]
    await netlink.set_routes(name, routes)


async def enable_forwarding(netlink: Netlink, config: RelayConfig, uplink: Uplink) -> bool:
    """Let packets pass between tunnel and uplink; whether this machine forwarded packets from the uplink before.

    Raises:
        NetlinkSetupError: The kernel refused, as it does for IPv6 with a read-only /proc/sys.
    """
    versions = {address.version for address in config.enclave.addresses}
    forwarded = False
    if 4 in versions:
        await netlink.enable_ipv4_forwarding(config.interface.name)
        forwarded |= await netlink.enable_ipv4_forwarding(uplink.name)
    if 6 in versions & uplink.versions:
        forwarded |= netlink.enable_ipv6_forwarding(uplink.name)
    return forwarded
