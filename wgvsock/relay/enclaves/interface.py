"""The relay's tunnel interface in the kernel, and the enclave's settings that depend on the relay's machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final, TypeVar

from wgvsock.addresses import IpAddress, IpInterface, IpNetwork
from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import TunnelConfig
from wgvsock.provisioning.errors import ConfigRejectedError
from wgvsock.relay.enclaves.names import forwards
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import KnownFacts
from wgvsock.system.filter.rules import TUNNEL_GROUP
from wgvsock.system.netlink import IPV4_FORWARDING, Netlink, Route
from wgvsock.system.resolver import ResolverSettings
from wgvsock.telemetry.logs import error_fields

_EVERYTHING: Final[dict[int, IpNetwork]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

_MAX_TRIED: Final = 64
"""Values of each kind to try from the relay's resolv.conf. A file may have 30,000, and resolvers use 3 to 8."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Uplink:
    """The uplink of this machine.

    Attributes:
        interfaces: The interface for each IP version. They may differ: an IPv6 pod on EKS has a separate interface for
            IPv4.
        mtu: The lowest MTU of the interfaces, in bytes.
        versions: The IP versions that have a default route through it and are forwarded.
        unset_sysctls: The sysctls that someone else has to set before IPv6, which has a default route, is forwarded.
    """

    interfaces: tuple[tuple[int, str], ...]
    mtu: int
    versions: frozenset[int]
    unset_sysctls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The names of the interfaces, for people."""
        return ", ".join(dict.fromkeys(name for _, name in self.interfaces))


async def find_uplink(netlink: Netlink, configured: str | None) -> Uplink:
    """Find the uplink: the configured interface for both IP versions, or that of each version's default route.

    A container with a read-only /proc/sys may have an IPv6 default route but not forward IPv6. If it also has an IPv4
    default route, only IPv4 is used. The relay thus works on a dual-stack network, and the enclave gets no IPv6 route
    that leads nowhere.

    Raises:
        UplinkError: There is no default route.
        NetlinkSetupError: The configured interface does not exist.
    """
    defaults = {version: await netlink.default_interface(version) for version in (4, 6)}
    if configured is not None:
        names: dict[int, str] = {4: configured, 6: configured}
    else:
        # A version without a default route may still have neighbours on the other version's interface.
        names = {version: name for version in (4, 6) if (name := defaults[version] or defaults[10 - version])}
    if not names:
        raise UplinkError(
            "cannot find the uplink",
            why="there is no default route",
            fix='set "uplink" in [nat]',
        )
    versions = frozenset(version for version, name in names.items() if defaults[version] == name)
    unset = netlink.barred_switches(names[6]) if versions == {4, 6} else ()
    return Uplink(
        interfaces=tuple(names.items()),
        mtu=min([(await netlink.interface(name)).mtu for name in names.values()]),
        versions=versions - {6} if unset else versions,
        unset_sysctls=unset,
    )


def warn_of_ipv6(spec: EnclaveSpec, uplink: Uplink, before: Uplink | None = None) -> None:
    """Log why the enclave has no IPv6 although there is a default route, if that was not the case before."""
    known = () if before is None else before.unset_sysctls
    has_ipv6 = any(address.version == 6 for address in spec.enclave.addresses)
    if has_ipv6 and uplink.unset_sysctls not in {(), known}:
        error = NetlinkSetupError(
            f"IPv6 is not forwarded: {', '.join(uplink.unset_sysctls)} cannot be set here",
            fix="set it from outside, as deploy/kustomize/overlays/ipv6 does for a Pod",
        )
        _log.warning("the relay is IPv4-only", extra=error_fields(error, enclave=spec.name))


async def refuse_overlap(netlink: Netlink, spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
    """Refuse a tunnel whose prefix is in use on this machine, because its packets would be ambiguous.

    Raises:
        ConfigurationError: An interface's network overlaps a prefix of the tunnel, or a name server is in one.
    """
    own = spec.interface.name
    prefixes = tunnel_prefixes(tunnel)
    for name, address in await netlink.networks(besides=(own, "lo")):
        for prefix in prefixes:
            if prefix.version == address.version and prefix.overlaps(address.network):
                raise ConfigurationError(
                    f"the tunnel cannot use {prefix}",
                    why=f"it overlaps {address.network}, the network of {name}",
                    fix="give [interface] and [enclave] addresses in a prefix that this machine does not use",
                )
    refuse_own_servers(spec, tunnel)


def refuse_own_servers(spec: EnclaveSpec, tunnel: TunnelConfig) -> None:
    """Refuse name servers in the tunnel's own prefix, where only the relay can be.

    Raises:
        ConfigurationError: There is such a name server.
    """
    ours = {address.ip for address in spec.interface.addresses}
    prefixes = tunnel_prefixes(tunnel)
    for server in tunnel.nameservers:
        if server not in ours and any(server in prefix for prefix in prefixes if prefix.version == server.version):
            raise ConfigurationError(
                f"the enclave cannot use the name server {server}",
                why="its address is in the tunnel's own prefix",
                fix="give [interface] and [enclave] addresses in another prefix, or set other servers in [dns]",
            )


def tunnel_prefixes(tunnel: TunnelConfig) -> tuple[IpNetwork, ...]:
    """The networks of the enclave's addresses."""
    return tuple(dict.fromkeys(address.network for address in tunnel.addresses))


def make_tunnel_config(spec: EnclaveSpec, uplink: Uplink, own_resolver: ResolverSettings) -> TunnelConfig:
    """Make the settings that provisioning sends to the enclave.

    Raises:
        ConfigurationError: The enclave would refuse the settings.
    """
    plain = TunnelConfig(
        addresses=spec.enclave.addresses,
        gateways=tuple(_gateways(spec)),
        mtu=spec.interface.mtu or min(uplink.mtu, 65535),
        allowed_ips=spec.enclave.routes or tuple(_default_routes(spec, uplink)),
        persistent_keepalive=spec.interface.persistent_keepalive,
    )
    dns = spec.dns
    servers = plain.gateways if forwards(spec, own_resolver) else dns.servers
    try:
        plain.validate()
        # The operator's settings have to be valid. Of the values copied from the relay's resolv.conf, those that make
        # no sense in the enclave are left out: name servers on this machine's loopback, and unknown options.
        tunnel = replace(plain, nameservers=servers or (), search=dns.search or (), resolver_options=dns.options or ())
        tunnel.validate()
    except ConfigRejectedError as error:
        raise ConfigurationError("the enclave would refuse its settings", why=error.why, fix=error.fix) from error
    if servers is None:
        copied = _valid(own_resolver.servers, 3, lambda values: replace(tunnel, nameservers=values))
        tunnel = replace(tunnel, nameservers=copied)
    if dns.search is None:
        search = _valid(own_resolver.search, 6, lambda values: replace(tunnel, search=values))
        tunnel = replace(tunnel, search=search)
    if dns.options is None:
        options = _valid(own_resolver.options, 8, lambda values: replace(tunnel, resolver_options=values))
        tunnel = replace(tunnel, resolver_options=options)
    return tunnel


def _gateways(spec: EnclaveSpec) -> Iterable[IpAddress]:
    """The relay's first address of each IP version that is in a prefix of the enclave's addresses."""
    seen: set[int] = set()
    for own in spec.interface.addresses:
        if own.version not in seen and any(own.ip in address.network for address in spec.enclave.addresses):
            seen.add(own.version)
            yield own.ip


def _default_routes(spec: EnclaveSpec, uplink: Uplink) -> Iterable[IpNetwork]:
    versions = {address.version for address in spec.enclave.addresses}
    return (_EVERYTHING[version] for version in sorted(versions & uplink.versions or versions))


def _valid(values: Sequence[_T], limit: int, apply: Callable[[tuple[_T, ...]], TunnelConfig]) -> tuple[_T, ...]:
    """The first values, at most `limit`, that the enclave accepts together. One log line covers all the others."""
    kept: tuple[_T, ...] = ()
    refused: list[tuple[_T, str]] = []
    for value in values[:_MAX_TRIED]:
        if len(kept) == limit:
            break
        try:
            apply((*kept, value)).validate()
        except ConfigRejectedError as error:
            refused.append((value, error.why))
        else:
            kept = (*kept, value)
    if len(kept) < len(values):
        value, why = refused[0] if refused else (values[limit], f"the enclave accepts {limit} at most")
        others = len(values) - len(kept) - 1
        more = f" and {others} more" if others else ""
        _log.warning("ignored %s%s in the relay's resolv.conf: %s", value, more, why)
    return kept


def enclave_hosts(spec: EnclaveSpec) -> tuple[IpNetwork, ...]:
    """The enclave's addresses as host networks. They are its allowed IPs: it may use no other source address."""
    return tuple(ip_network(address.ip) for address in spec.enclave.addresses)


def first_addresses(spec: EnclaveSpec, versions: frozenset[int]) -> list[IpInterface]:
    """The enclave's first address of each of these IP versions."""
    firsts = {address.version: address for address in reversed(spec.enclave.addresses)}
    return [firsts[version] for version in sorted(firsts.keys() & versions)]


def path_ends(spec: EnclaveSpec) -> tuple[IpAddress, IpAddress] | None:
    """The relay's and the enclave's address between which the path is probed, or None without a common IP version."""
    for theirs in spec.enclave.addresses:
        own = [address.ip for address in spec.interface.addresses if address.version == theirs.version]
        if own:
            return next((ip for ip in own if ip in theirs.network), own[0]), theirs.ip
    return None


async def set_up_tunnel(netlink: Netlink, spec: EnclaveSpec, mtu: int) -> bool:
    """Bring up the TUN interface with its addresses, and add routes to enclave addresses outside their prefixes.

    Args:
        netlink: Configures the interface.
        spec: The enclave's specification.
        mtu: The MTU in bytes.

    Returns:
        Whether anything was changed.

    Raises:
        NetlinkSetupError: The kernel refused.
    """
    name = spec.interface.name
    changed = await netlink.bring_up(name, mtu=mtu, queue_length=spec.interface.queue_length, group=TUNNEL_GROUP)
    changed |= await netlink.set_addresses(name, spec.interface.addresses)
    on_link = [own.network for own in spec.interface.addresses]
    routes = [
        Route(host)
        for host in enclave_hosts(spec)
        if not any(network.version == host.version and host[0] in network for network in on_link)
    ]
    return await netlink.set_routes(name, routes) or changed


async def look_at_forwarding(
    netlink: Netlink, spec: EnclaveSpec, uplink: Uplink, known: KnownFacts
) -> tuple[Fact, ...]:
    """The sysctls that forwarding needs, with their values from before any relay changed them.

    Only the enclave's IP versions that the uplink forwards are included.

    Args:
        netlink: Reads the present values.
        spec: The enclave's specification.
        uplink: The uplink.
        known: Values that rules in this namespace remember: rules of this relay from before a restart, and of others.

    Raises:
        NetlinkSetupError: An interface is gone, or the kernel has no IPv6.
    """
    versions = {address.version for address in spec.enclave.addresses}
    seen = await netlink.forwarding_switches(
        {version: name for version, name in uplink.interfaces if version in versions and _leads_on(uplink, version)}
    )
    remembered = {(fact.kind, fact.target): fact for fact in (*known.others, *known.own)}
    return tuple(remembered.get((fact.kind, fact.target), fact) for fact in seen)


def _leads_on(uplink: Uplink, version: int) -> bool:
    # IPv6 forwarding affects the whole machine, which then ignores router advertisements. Enable it only if needed.
    return version == 4 or version in uplink.versions


def confined_versions(before: Iterable[Fact], *, forwards_ipv4_now: bool) -> frozenset[int]:
    """The IP versions that this machine forwards only for tunnels.

    Args:
        before: The result of `look_at_forwarding`.
        forwards_ipv4_now: Whether the whole machine is an IPv4 router now, maybe only since then. Other packets are
            then forwarded for another program.
    """
    confined: set[int] = set()
    for fact in before:
        if fact.kind == IPV4_FORWARDING:
            interface, _, machine = fact.value.partition("/")
            if interface == "0" and not (machine == "0" and forwards_ipv4_now):
                confined.add(4)
        elif fact.target.endswith("/forwarding") and fact.value == "0":
            confined.add(6)
    return frozenset(confined)
