"""A kernel in memory for tests of the services: interfaces, addresses, routes, forwarding and a packet filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from wgvsock.addresses import IpInterface
from wgvsock.runtime.journal import Record, Undo
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import Ran
from wgvsock.system.netlink import IPV4_FORWARDING, SYSCTL, Interface, Route


class MemoryKernel:
    """Has the methods of `wgvsock.system.netlink.Netlink`, and replaces the result of `open_netlink`.

    Attributes:
        mtus: MTU of each interface, in bytes.
        up: Interfaces that were brought up.
        addresses: Addresses of each interface.
        routes: Routes of each interface.
        defaults: Interface of the default route for each IP version.
        forwarding: What forwards: interfaces for IPv4, ``"ipv4"`` for the whole machine, ``"ipv6"``.
        groups: Group of each interface.
        marked: Interfaces with the IP versions of which packets need a mark to be routed.
        without_ipv6: Interfaces on which IPv6 is switched off.
        barred: Sysctls of IPv6 forwarding that are off and not writable.
        record: Records how to undo forwarding. By default it records nothing, as nothing real is changed.
        refuses: Names of methods that fail.
    """

    def __init__(self) -> None:
        self.mtus = {"lo": 65536, "eth0": 1500, "wg0": 1500}
        self.up: list[str] = []
        self.addresses: dict[str, list[IpInterface]] = {}
        self.routes: dict[str, list[Route]] = {}
        self.defaults: dict[int, str | None] = {4: "eth0", 6: "eth0"}
        self.forwarding: set[str] = set()
        self.groups: dict[str, int] = {}
        self.marked: set[tuple[str, int]] = set()
        self.without_ipv6: set[str] = set()
        self.barred: tuple[str, ...] = ()
        self.record: Record = lambda undo: undo
        self.refuses: set[str] = set()

    @asynccontextmanager
    async def open(self, _record: Record) -> AsyncIterator[MemoryKernel]:
        """Replaces `wgvsock.system.netlink.open_netlink`."""
        yield self

    async def interface(self, name: str) -> Interface:
        """See `Netlink.interface`."""
        self._check("interface")
        if name not in self.mtus:
            raise NetlinkSetupError(f"cannot find the network interface {name}", why="No such device")
        return Interface(1, name, self.mtus[name], name in self.up, name in self.forwarding)

    async def default_interface(self, version: int) -> str | None:
        """See `Netlink.default_interface`."""
        return self.defaults[version]

    async def networks(self, *, besides: Collection[str]) -> list[tuple[str, IpInterface]]:
        """See `Netlink.networks`."""
        return [(name, address) for name, own in self.addresses.items() if name not in besides for address in own]

    async def bring_up(
        self, name: str, *, mtu: int | None = None, queue_length: int | None = None, group: int | None = None
    ) -> bool:
        """See `Netlink.bring_up`."""
        self._check("bring_up")
        del queue_length
        before = name in self.up, self.mtus[name], self.groups.get(name)
        if name not in self.up:
            self.up.append(name)
        self.mtus[name] = self.mtus[name] if mtu is None else mtu
        if group is not None:
            self.groups[name] = group
        return before != (True, self.mtus[name], self.groups.get(name))

    async def set_addresses(self, name: str, addresses: Collection[IpInterface]) -> bool:
        """See `Netlink.set_addresses`."""
        self._check("set_addresses")
        if name in self.without_ipv6 and any(address.version == 6 for address in addresses):
            raise NetlinkSetupError(f"cannot set the addresses of {name}", why="IPv6 is switched off (disable_ipv6)")
        before, self.addresses[name] = self.addresses.get(name), list(addresses)
        return before != self.addresses[name]

    async def set_routes(self, name: str, routes: Collection[Route]) -> bool:
        """See `Netlink.set_routes`."""
        self._check("set_routes")
        before, self.routes[name] = self.routes.get(name), list(routes)
        return before != self.routes[name]

    async def forwarding_switches(self, uplinks: Mapping[int, str]) -> tuple[Fact, ...]:
        """See `Netlink.forwarding_switches`."""
        self._check("forwarding_switches")
        switches: list[Fact] = []
        if name := uplinks.get(4):
            switches.append(Fact(IPV4_FORWARDING, name, f"{name in self.forwarding:d}/{self.forwards_ipv4():d}"))
        if 6 in uplinks:
            switches.append(Fact(SYSCTL, "/proc/sys/net/ipv6/conf/all/forwarding", f"{'ipv6' in self.forwarding:d}"))
        return tuple(switches)

    def has_ipv6(self, name: str) -> bool:
        """See `Netlink.has_ipv6`."""
        return name not in self.without_ipv6

    def barred_switches(self, uplink: str) -> tuple[str, ...]:
        """See `Netlink.barred_switches`."""
        del uplink
        return () if "ipv6" in self.forwarding else self.barred

    def forwards_ipv4(self) -> bool:
        """See `Netlink.forwards_ipv4`."""
        return "ipv4" in self.forwarding

    async def enable_forwarding(self, tunnel: str, switches: Collection[Fact]) -> bool:
        """See `Netlink.enable_forwarding`."""
        self._check("enable_forwarding")
        before = set(self.forwarding)
        for switch in switches:
            self.record(Undo(switch.kind, switch.target, switch.value))
            self.forwarding |= {tunnel, switch.target} if switch.kind == IPV4_FORWARDING else {"ipv6"}
        return before != self.forwarding

    def require_mark(self, tunnel: str, versions: Iterable[int]) -> bool:
        """See `wgvsock.system.routing_rule.require_mark`."""
        self._check("require_mark")
        before = set(self.marked)
        self.marked |= {(tunnel, version) for version in versions}
        return before != self.marked

    async def forget_mark(self, tunnel: str, _: object) -> None:
        """Undo `require_mark`."""
        self.marked = {(name, version) for name, version in self.marked if name != tunnel}

    def _check(self, method: str) -> None:
        if method in self.refuses:
            raise NetlinkSetupError(f"cannot {method}", why="the test says so", fix="change the test")


class MemoryFilter:
    """Replaces `wgvsock.system.filter.apply.run_tool`: an nft that lists tables as they were written.

    Attributes:
        tables: Text of each table, by name.
        history: Every text that was applied.
        pinned: Every change of a set's elements.
        refuses: Commands that contain one of these texts fail.
        prints: Output of other commands, by a text that they contain.
    """

    def __init__(self) -> None:
        self.tables: dict[str, str] = {}
        self.history: list[str] = []
        self.pinned: list[str] = []
        self.refuses: set[str] = set()
        self.prints: dict[str, str] = {}

    async def __call__(self, command: Sequence[str], text: str) -> Ran:
        """Run one command."""
        line = " ".join(command)
        if any(part in line for part in self.refuses):
            return Ran(1, "Error: the test says so")
        if line == "nft -f -" and text.startswith("add element"):
            self.pinned.append(text)
        elif line == "nft -f -":
            name = text.split(maxsplit=3)[2]
            self.tables.pop(name, None)
            if "chain" in text:
                self.tables[name] = text
            self.history.append(text)
        if line.startswith("nft list tables"):
            return Ran(0, output="".join(f"table inet {name}\n" for name in self.tables))
        if line.startswith("nft -s -t list table"):
            return Ran(0, output=self.tables.get(command[-1], ""))
        return Ran(0, output=next((text for part, text in self.prints.items() if part in line), ""))

    @property
    def rules(self) -> str | None:
        """The text of the first table, or None."""
        return next(iter(self.tables.values()), None)

    @property
    def is_open(self) -> bool:
        """Whether there are tables, and all of them let new flows pass."""
        return bool(self.tables) and all("masquerade" in text for text in self.tables.values())
