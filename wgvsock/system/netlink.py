"""Interfaces, addresses, routes and forwarding, through rtnetlink(7) and pyroute2.

Every change that outlives this process is handed to a `Record` before it is made. Addresses and routes of our own
TUN interface need no record: they go with the interface.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import IpAddress, IpInterface, IpNetwork
from wgvsock.runtime.journal import Performer, Record, Undo
from wgvsock.system import ipv6
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.facts import Fact
from wgvsock.system.iproute import Dumps, IPRoute, NetlinkError
from wgvsock.system.rawnetlink import RawNetlink, attribute

_RTM_SETLINK: Final = 19
_IFLA_AF_SPEC: Final = 26
_IFLA_INET_CONF: Final = 1
_IPV4_DEVCONF_FORWARDING: Final = 1
_IFF_UP: Final = 1
_IFA_F_NODAD: Final = 0x02
_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1

ROUTE_PROTOCOL: Final = 0x77
"""Our mark on routes and routing rules (``proto`` in ``ip route``): those that carry it are ours to remove."""

_IPV4_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")

IPV4_FORWARDING: Final = "ipv4_forwarding"
"""Kind of the switch of one interface. Its value is ``interface/machine``, each 0 or 1. The machine's value tells later
whether another program turned forwarding on."""

SYSCTL: Final = "sysctl"
"""Kind of a file below /proc/sys."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, as the kernel describes it. MTU in bytes, queue length in packets."""

    index: int
    name: str
    mtu: int
    is_up: bool
    ipv4_forwarding: bool
    queue_length: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A destination and its gateway, which is None if the destination is on-link."""

    destination: IpNetwork
    gateway: IpAddress | None = None


class Netlink:
    """One rtnetlink socket, opened by `open_netlink`.

    Args:
        ipr: pyroute2's asynchronous socket, or a test double.
        record: Takes each undo before the change.
        ipv6_conf: Replaces /proc/sys/net/ipv6/conf in tests.
        ipv4_forward: Replaces /proc/sys/net/ipv4/ip_forward in tests.
    """

    def __init__(
        self, ipr: Any, record: Record, *, ipv6_conf: Path = ipv6.CONF, ipv4_forward: Path = _IPV4_FORWARD
    ) -> None:
        self._ipr = ipr
        self._dump = Dumps(ipr)
        self._record = record
        self._ipv6_conf = ipv6_conf
        self._ipv4_forward = ipv4_forward

    async def interface(self, name: str) -> Interface:
        """Look up an interface.

        Raises:
            NetlinkSetupError: No interface has that name.
        """
        with _explained(f"cannot find the network interface {name}", "name one that `ip link` shows"):
            (link,) = await self._ipr.link("get", ifname=name)
        return _interface(link)

    async def default_interface(self, version: int) -> str | None:
        """The interface of the default route with the lowest metric, or None. `version` is 4 or 6."""
        with _explained("cannot read the routes", _FIX_NET_ADMIN):
            routes = [
                (route.get_attr("RTA_PRIORITY") or 0, _output_interface(route))
                for route in await self._dump("route", family=_family(version))
                if route["dst_len"] == 0 and route["table"] == _RT_TABLE_MAIN and route["type"] == _RTN_UNICAST
            ]
            indices = [index for _, index in sorted(routes) if index]
            if not indices:
                return None
            (link,) = await self._ipr.link("get", index=indices[0])
        return _interface(link).name

    async def bring_up(
        self, name: str, *, mtu: int | None = None, queue_length: int | None = None, group: int | None = None
    ) -> bool:
        """Bring an interface up, and return whether anything changed.

        Args:
            name: The interface.
            mtu: MTU in bytes.
            queue_length: Length of the transmit queue, in packets.
            group: Interface group, which the packet filter can match.
        """
        link = await self.interface(name)
        self._record(Undo("link_state", name, "up" if link.is_up else "down"))
        wanted = {"mtu": mtu, "txqlen": queue_length, "group": group}
        chosen = {key: value for key, value in wanted.items() if value is not None}
        present = {"mtu": link.mtu, "txqlen": link.queue_length, "group": link.group}
        if link.is_up and chosen.items() <= present.items():
            return False
        with _explained(f"cannot bring {name} up", _FIX_NET_ADMIN):
            await self._ipr.link("set", index=link.index, state="up", **chosen)
        return True

    async def set_addresses(self, name: str, addresses: Collection[IpInterface]) -> bool:
        """Give our interface exactly these addresses, and its IPv6 link-local ones. New ones are added first.

        Returns:
            Whether anything changed.
        """
        index = (await self.interface(name)).index
        with _explained(f"cannot set the addresses of {name}", _FIX_NET_ADMIN):
            changed = await self._add_addresses(index, addresses)
            for address in await self._addresses(index):
                if address not in addresses and not address.is_link_local:
                    await self._ipr.addr("del", index=index, **_prefix(address))
                    changed = True
            # The kernel removes later addresses of the same prefix as well (promote_secondaries is off by default).
            return await self._add_addresses(index, addresses) or changed

    async def _add_addresses(self, index: int, addresses: Collection[IpInterface]) -> bool:
        present = await self._addresses(index)
        missing = [address for address in addresses if address not in present]
        for address in missing:
            # Duplicate address detection would delay an IPv6 address by a second, and nobody else is on a TUN.
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            await self._ipr.addr("add", index=index, **_prefix(address), **flags)
        return bool(missing)

    async def _addresses(self, index: int) -> set[IpInterface]:
        return {_interface_address(message) for message in await self._dump("addr", index=index)}

    async def set_routes(self, name: str, routes: Collection[Route]) -> bool:
        """Give our interface exactly these routes, in addition to the kernel's own.

        Returns:
            Whether anything changed.
        """
        index = (await self.interface(name)).index
        wanted = {_route_key(route): route for route in routes}
        with _explained(f"cannot set the routes through {name}", _FIX_ROUTES):
            present = {
                (_destination(message), message.get_attr("RTA_GATEWAY"))
                for version in (4, 6)
                for message in await self._dump("route", family=_family(version))
                if message["proto"] == ROUTE_PROTOCOL and message.get_attr("RTA_OIF") == index
            }
            ours = {destination for destination, _ in present}
            for key in wanted.keys() - present:
                # A new gateway replaces our old route. Replacing another program's route is refused.
                verb = "replace" if key[0] in ours else "add"
                await self._ipr.route(verb, oif=index, proto=ROUTE_PROTOCOL, **_route_fields(key))
            replaced = {destination for destination, _ in wanted.keys() - present}
            for key in present - wanted.keys():
                if key[0] not in replaced:
                    await self._ipr.route("del", oif=index, proto=ROUTE_PROTOCOL, **_route_fields(key))
        return present != wanted.keys()

    async def networks(self, *, besides: Collection[str]) -> list[tuple[str, IpInterface]]:
        """Pairs of interface name and address with prefix, on every interface except those in `besides`."""
        with _explained("cannot read the addresses", _FIX_NET_ADMIN):
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in await self._dump("link")}
            return [
                (names.get(message["index"], ""), _interface_address(message))
                for message in await self._dump("addr")
                if names.get(message["index"]) not in besides
            ]

    async def forwarding_switches(self, uplinks: Mapping[int, str]) -> tuple[Fact, ...]:
        """The switches for forwarding, with their present values. `uplinks` has the uplink's name by IP version.

        Raises:
            NetlinkSetupError: An uplink does not exist, or the kernel has no IPv6.
        """
        switches: list[Fact] = []
        if name := uplinks.get(4):
            forwards = (await self.interface(name)).ipv4_forwarding
            switches.append(Fact(IPV4_FORWARDING, name, f"{forwards:d}/{self.forwards_ipv4():d}"))
        if name := uplinks.get(6):
            files = ipv6.switches(name, self._ipv6_conf)
            switches += [Fact(SYSCTL, str(path), self._read_sysctl(path)) for path in files]
        return tuple(switches)

    def has_ipv6(self, name: str) -> bool:
        """See `ipv6.is_there`."""
        return ipv6.is_there(name, self._ipv6_conf)

    def barred_switches(self, uplink: str) -> tuple[str, ...]:
        """See `ipv6.barred`."""
        return ipv6.barred([uplink], self._ipv6_conf)

    def forwards_ipv4(self) -> bool:
        """Whether another program made this machine an IPv4 router. We only switch single interfaces."""
        return self._read_sysctl(self._ipv4_forward) != "0"

    async def enable_forwarding(self, tunnel: str, switches: Collection[Fact]) -> bool:
        """Forward packets between the tunnel and its uplinks, and return whether anything changed.

        Args:
            tunnel: The TUN interface. Its own switch goes with it.
            switches: From `forwarding_switches`, with the values to restore later.

        Raises:
            NetlinkSetupError: A sysctl is off and cannot be written, as with a read-only /proc/sys.
        """
        changed = False
        for switch in switches:
            self._record(Undo(switch.kind, switch.target, switch.value))
            if switch.kind == IPV4_FORWARDING:
                for name in (tunnel, switch.target):
                    changed |= await self._forward_ipv4(name)
            else:
                changed |= self._turn_on(Path(switch.target))
        return changed

    async def _forward_ipv4(self, name: str) -> bool:
        link = await self.interface(name)
        if not link.ipv4_forwarding:
            set_ipv4_forwarding(link.index, enabled=True)
        return not link.ipv4_forwarding

    def _turn_on(self, path: Path) -> bool:
        value = ipv6.wanted(path, self._read_sysctl(path))
        if value is None:
            return False
        try:
            ipv6.write(path, value)
        except OSError as error:
            raise NetlinkSetupError(
                f"cannot set {path} to {value}",
                why=error.strerror or str(error),
                fix="set net.ipv6.conf.all.forwarding=1 from outside (a Pod's securityContext.sysctls),"
                " or leave the IPv6 addresses out of the configuration",
            ) from error
        return True

    @staticmethod
    def _read_sysctl(path: Path) -> str:
        with _explained(f"cannot read {path}", "boot a kernel with IPv6, or leave the IPv6 addresses out"):
            return path.read_text(encoding="ascii").strip()


@asynccontextmanager
async def open_netlink(record: Record) -> AsyncIterator[Netlink]:
    """Open an rtnetlink socket for as long as the block runs."""
    async with IPRoute() as ipr:
        yield Netlink(ipr, record)


def set_ipv4_forwarding(index: int, *, enabled: bool) -> None:
    """Switch an interface's IPv4 forwarding with RTM_SETLINK, which needs only NET_ADMIN.

    pyroute2 does not encode this attribute, so the message is laid out here: IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF
    { IPV4_DEVCONF_FORWARDING: u32 } } }, in native byte order (rtnetlink(7), linux/if_link.h).

    Raises:
        NetlinkSetupError: The kernel refused.
    """
    flag = attribute(_IPV4_DEVCONF_FORWARDING, struct.pack("=I", enabled))
    specification = attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(_IFLA_INET_CONF, flag)))
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + specification
    with _explained("cannot switch IPv4 forwarding", _FIX_NET_ADMIN), RawNetlink(socket.NETLINK_ROUTE) as channel:
        channel.change(_RTM_SETLINK, body)


def performers() -> dict[str, Performer]:
    """The functions that undo this module's changes, for a `Journal`."""
    return {"link_state": _restore_link_state, IPV4_FORWARDING: _restore_ipv4_forwarding, SYSCTL: _restore_sysctl}


async def _restore_link_state(name: str, state: str) -> None:
    async with IPRoute() as ipr:
        with _explained(f"cannot set the link {name} {state}", _FIX_NET_ADMIN), _gone_is_fine():
            await ipr.link("set", ifname=name, state=state)


async def _restore_ipv4_forwarding(name: str, before: str) -> None:
    interface, _, machine = before.partition("/")
    if machine == "0" and _IPV4_FORWARD.read_text(encoding="ascii").strip() != "0":
        return  # another program, such as Docker, has made the machine a router and needs this switch
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return  # the interface is gone, and its flag with it
    set_ipv4_forwarding(index, enabled=interface == "1")


async def _restore_sysctl(path: str, value: str) -> None:
    with _explained(f"cannot restore {path} to {value}", "set it by hand"), _gone_is_fine():
        ipv6.write(Path(path), value)


_FIX_NET_ADMIN: Final = "run as root, or with the capability NET_ADMIN (Pod: securityContext.capabilities.add)"
_FIX_NO_IPV6: Final = "set net.ipv6.conf.all.disable_ipv6 and .default.disable_ipv6 to 0, or leave IPv6 addresses out"
_FIX_ROUTES: Final = "remove the route that is in the way (`ip route`), and run with the capability NET_ADMIN"


@contextmanager
def _explained(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EACCES:  # this is its only cause: a missing capability is EPERM
            raise NetlinkSetupError(what, why="IPv6 is switched off (disable_ipv6)", fix=_FIX_NO_IPV6) from error
        raise NetlinkSetupError(what, why=str(error.args[-1]), fix=fix) from error
    except OSError as error:
        raise NetlinkSetupError(what, why=error.strerror or str(error), fix=fix) from error


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NetlinkError) as error:
        if getattr(error, "code", errno.ENODEV) != errno.ENODEV:
            raise


def _interface_address(message: Any) -> IpInterface:
    return ip_interface(f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")


def _interface(link: Any) -> Interface:
    conf = link.get_attr("IFLA_AF_SPEC")
    inet = conf.get_attr("AF_INET") if conf is not None else None
    return Interface(
        index=link["index"],
        name=link.get_attr("IFLA_IFNAME"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=bool(link["flags"] & _IFF_UP),
        ipv4_forwarding=inet is not None and bool(inet["forwarding"]),
        queue_length=link.get_attr("IFLA_TXQLEN"),
        group=link.get_attr("IFLA_GROUP"),
    )


def _output_interface(route: Any) -> int:
    """Index of the outgoing interface: the first of a multipath route, 0 for a route without one."""
    hops = route.get_attr("RTA_MULTIPATH")
    return int(hops[0]["oif"] if hops else route.get_attr("RTA_OIF") or 0)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _prefix(address: IpInterface) -> dict[str, str | int]:
    return {"address": str(address.ip), "prefixlen": address.network.prefixlen}


RouteKey = tuple[str, str | None]


def _route_key(route: Route) -> RouteKey:
    return str(route.destination), None if route.gateway is None else str(route.gateway)


def _destination(message: Any) -> str:
    default = "0.0.0.0" if message["family"] == socket.AF_INET else "::"  # noqa: S104 - a destination, no bind
    return str(ip_network(f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}"))


def _route_fields(key: RouteKey) -> dict[str, str | int]:
    destination, gateway = key
    fields: dict[str, str | int] = {"dst": destination, "family": _family(ip_network(destination).version)}
    return fields if gateway is None else {**fields, "gateway": gateway}
