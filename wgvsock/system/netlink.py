"""Interfaces, addresses, routes and forwarding through rtnetlink (rtnetlink(7)); the only module that knows pyroute2.

Every change that outlives this process is handed to a `Record` before it is made. Addresses and routes of our own
TUN interface need none: they go with it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from wgvsock.settings import IpAddress, IpInterface, IpNetwork
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.journal import Performer, Record, Undo
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
"""Our mark on routes (``proto`` in ``ip route``): what carries it is ours to remove."""

_IPV6_CONF: Final = Path("/proc/sys/net/ipv6/conf")


@dataclass(frozen=True, slots=True)
class Interface:
    """What the kernel says about a network interface; MTU in bytes."""

    index: int
    name: str
    mtu: int
    is_up: bool
    ipv4_forwarding: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A destination, and the gateway it is reached through (None: it is on the link)."""

    destination: IpNetwork
    gateway: IpAddress | None = None


class Netlink:
    """One rtnetlink socket; made by `open_netlink`.

    Args:
        socket: pyroute2's asynchronous socket, or a double of it.
        record: Where undos are written down.
        ipv6_conf: Replaces /proc/sys/net/ipv6/conf in tests.
    """

    def __init__(self, ipr: Any, record: Record, *, ipv6_conf: Path = _IPV6_CONF) -> None:
        self._ipr = ipr
        self._record = record
        self._ipv6_conf = ipv6_conf

    async def interface(self, name: str) -> Interface:
        """Look an interface up.

        Raises:
            NetlinkSetupError: There is none of that name.
        """
        with _explained(f"cannot find the network interface {name}", "name one that `ip link` shows"):
            (link,) = await self._ipr.link("get", ifname=name)
        return _interface(link)

    async def default_interface(self, version: int) -> str | None:
        """Name of the interface of the default route with the lowest metric, or None; `version` is 4 or 6."""
        with _explained("cannot read the routes", _FIX_NET_ADMIN):
            routes = [
                (route.get_attr("RTA_PRIORITY") or 0, _output_interface(route))
                async for route in await self._ipr.route("dump", family=_family(version))
                if route["dst_len"] == 0 and route["table"] == _RT_TABLE_MAIN and route["type"] == _RTN_UNICAST
            ]
            indices = [index for _, index in sorted(routes) if index]
            if not indices:
                return None
            (link,) = await self._ipr.link("get", index=indices[0])
        return _interface(link).name

    async def bring_up(self, name: str, *, mtu: int | None = None, queue_length: int | None = None) -> None:
        """Set an interface up; `mtu` in bytes, `queue_length` in packets."""
        link = await self.interface(name)
        self._record(Undo("link_state", name, "up" if link.is_up else "down"))
        options = {"mtu": mtu, "txqlen": queue_length}
        chosen = {key: value for key, value in options.items() if value is not None}
        with _explained(f"cannot bring {name} up", _FIX_NET_ADMIN):
            await self._ipr.link("set", index=link.index, state="up", **chosen)

    async def set_addresses(self, name: str, addresses: Collection[IpInterface]) -> None:
        """Give an interface of ours exactly these addresses (and its IPv6 link-local ones); new ones come first."""
        index = (await self.interface(name)).index
        with _explained(f"cannot set the addresses of {name}", _FIX_NET_ADMIN):
            await self._add_addresses(index, addresses)
            for address in await self._addresses(index):
                if address not in addresses and not address.is_link_local:
                    await self._ipr.addr("del", index=index, **_prefix(address))
            # With an address the kernel removes the later ones of its prefix (promote_secondaries is off by default).
            await self._add_addresses(index, addresses)

    async def _add_addresses(self, index: int, addresses: Collection[IpInterface]) -> None:
        present = await self._addresses(index)
        for address in addresses:
            if address not in present:
                # Duplicate address detection would hold an IPv6 address back for a second; nobody else is on a TUN.
                flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
                await self._ipr.addr("add", index=index, **_prefix(address), **flags)

    async def _addresses(self, index: int) -> set[IpInterface]:
        return {
            ip_interface(f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
            async for message in await self._ipr.addr("dump", index=index)
        }

    async def set_routes(self, name: str, routes: Collection[Route]) -> None:
        """Give an interface of ours exactly these routes beside the kernel's own; new ones come first."""
        index = (await self.interface(name)).index
        wanted = {_route_key(route): route for route in routes}
        with _explained(f"cannot set the routes through {name}", _FIX_ROUTES):
            present = {
                (_destination(message), message.get_attr("RTA_GATEWAY"))
                for version in (4, 6)
                async for message in await self._ipr.route("dump", family=_family(version))
                if message["proto"] == ROUTE_PROTOCOL and message.get_attr("RTA_OIF") == index
            }
            for key in wanted.keys() - present:
                await self._ipr.route("add", oif=index, proto=ROUTE_PROTOCOL, **_route_fields(key))
            for key in present - wanted.keys():
                await self._ipr.route("del", oif=index, proto=ROUTE_PROTOCOL, **_route_fields(key))

    async def enable_ipv4_forwarding(self, name: str) -> bool:
        """Let IPv4 packets that arrive on an interface be forwarded, without a sysctl; whether they were already."""
        link = await self.interface(name)
        before = self._record(Undo("ipv4_forwarding", name, link.ipv4_forwarding))
        set_ipv4_forwarding(link.index, enabled=True)
        return bool(before.value)

    def enable_ipv6_forwarding(self, uplink: str) -> bool:
        """Let IPv6 packets be forwarded, and keep the uplink's routes; whether they were forwarded already.

        Raises:
            NetlinkSetupError: The sysctl is off and cannot be written, as with a read-only /proc/sys.
        """
        # With forwarding on, the kernel ignores router advertisements unless accept_ra is 2 (ip-sysctl), and the
        # uplink's default route would expire.
        if self._read_sysctl(accept_ra := self._ipv6_conf / uplink / "accept_ra") != "0":
            self._change_sysctl(accept_ra, "2")
        return self._change_sysctl(self._ipv6_conf / "all" / "forwarding", "1") == "1"

    def _read_sysctl(self, path: Path) -> str:
        with _explained(f"cannot read {path}", "boot a kernel with IPv6, or leave the IPv6 addresses out"):
            return path.read_text(encoding="ascii").strip()

    def _change_sysctl(self, path: Path, value: str) -> str:
        before = self._record(Undo("sysctl", str(path), self._read_sysctl(path)))
        try:
            _set_sysctl(path, value)
        except OSError as error:
            raise NetlinkSetupError(
                f"cannot set {path} to {value}",
                why=error.strerror or str(error),
                fix="IPv6 forwarding has no other switch: set net.ipv6.conf.all.forwarding=1 from outside (a Pod's"
                " securityContext.sysctls), or leave the IPv6 addresses out of the configuration",
            ) from error
        return str(before.value)


@asynccontextmanager
async def open_netlink(record: Record) -> AsyncIterator[Netlink]:
    """Open an rtnetlink socket for as long as the block runs."""
    async with AsyncIPRoute() as ipr:
        yield Netlink(ipr, record)


def set_ipv4_forwarding(index: int, *, enabled: bool) -> None:
    """Switch an interface's IPv4 forwarding by RTM_SETLINK, which NET_ADMIN suffices for.

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
    """The functions that take this module's changes back, for a `Journal`."""
    return {"link_state": _restore_link_state, "ipv4_forwarding": _restore_ipv4_forwarding, "sysctl": _restore_sysctl}


async def _restore_link_state(name: str, state: str) -> None:
    async with AsyncIPRoute() as ipr:
        with _explained(f"cannot set {name} {state}", _FIX_NET_ADMIN), _gone_is_fine():
            await ipr.link("set", ifname=name, state=state)


async def _restore_ipv4_forwarding(name: str, enabled: bool) -> None:
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return  # the interface is gone, and its flag with it
    set_ipv4_forwarding(index, enabled=enabled)


async def _restore_sysctl(path: str, value: str) -> None:
    with _explained(f"cannot set {path} back to {value}", "set it by hand"), _gone_is_fine():
        _set_sysctl(Path(path), value)


def _set_sysctl(path: Path, value: str) -> None:
    """Write a sysctl unless it has the value: it may be one that can be read only."""
    if path.read_text(encoding="ascii").strip() != value:
        with path.open("r+", encoding="ascii") as file:
            file.write(value)


_FIX_NET_ADMIN: Final = "run as root, or with the capability NET_ADMIN (Pod: securityContext.capabilities.add)"
_FIX_ROUTES: Final = "remove the route that is in the way (`ip route`), and run with the capability NET_ADMIN"


@contextmanager
def _explained(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise NetlinkSetupError(what, why=str(error.args[-1]), fix=fix) from error
    except OSError as error:
        raise NetlinkSetupError(what, why=error.strerror or str(error), fix=fix) from error


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _interface(link: Any) -> Interface:
    conf = link.get_attr("IFLA_AF_SPEC")
    inet = conf.get_attr("AF_INET") if conf is not None else None
    return Interface(
        index=link["index"],
        name=link.get_attr("IFLA_IFNAME"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=bool(link["flags"] & _IFF_UP),
        ipv4_forwarding=inet is not None and bool(inet["forwarding"]),
    )


def _output_interface(route: Any) -> int:
    """Index of the outgoing interface; a multipath route's first one, 0 for a route without one."""
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
