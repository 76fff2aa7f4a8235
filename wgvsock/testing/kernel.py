"""A kernel in memory for tests of the services: interfaces, addresses, routes, forwarding, and a packet filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from wgvsock.settings import IpInterface
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.journal import Record
from wgvsock.system.netlink import Interface, Route


class MemoryKernel:
    """Has the methods of `wgvsock.system.netlink.Netlink`, and is what `open_netlink` gives.

    Attributes:
        mtus: Interfaces and their MTU, in bytes.
        up: Interfaces that were brought up.
        addresses: By interface.
        routes: By interface.
        defaults: Interface of the default route by IP version.
        forwarding: What forwards: interfaces for IPv4, ``"ipv6"``.
        refuses: Names of methods that fail.
    """

    def __init__(self) -> None:
        self.mtus = {"lo": 65536, "eth0": 1500, "wg0": 1500}
        self.up: list[str] = []
        self.addresses: dict[str, list[IpInterface]] = {}
        self.routes: dict[str, list[Route]] = {}
        self.defaults: dict[int, str | None] = {4: "eth0", 6: "eth0"}
        self.forwarding: set[str] = set()
        self.refuses: set[str] = set()

    @asynccontextmanager
    async def open(self, _record: Record) -> AsyncIterator[MemoryKernel]:
        """In place of `wgvsock.system.netlink.open_netlink`."""
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

    async def bring_up(self, name: str, *, mtu: int | None = None, queue_length: int | None = None) -> None:
        """See `Netlink.bring_up`."""
        self._check("bring_up")
        del queue_length
        self.up.append(name)
        if mtu is not None:
            self.mtus[name] = mtu

    async def set_addresses(self, name: str, addresses: Collection[IpInterface]) -> None:
        """See `Netlink.set_addresses`."""
        self._check("set_addresses")
        self.addresses[name] = list(addresses)

    async def set_routes(self, name: str, routes: Collection[Route]) -> None:
        """See `Netlink.set_routes`."""
        self._check("set_routes")
        self.routes[name] = list(routes)

    async def enable_ipv4_forwarding(self, name: str) -> bool:
        """See `Netlink.enable_ipv4_forwarding`."""
        self._check("enable_ipv4_forwarding")
        before = name in self.forwarding
        self.forwarding.add(name)
        return before

    def enable_ipv6_forwarding(self, uplink: str) -> bool:
        """See `Netlink.enable_ipv6_forwarding`."""
        self._check("enable_ipv6_forwarding")
        del uplink
        before = "ipv6" in self.forwarding
        self.forwarding.add("ipv6")
        return before

    def _check(self, method: str) -> None:
        if method in self.refuses:
            raise NetlinkSetupError(f"cannot {method}", why="the test says so", fix="change the test")


class MemoryFilter:
    """In place of `wgvsock.system.netfilter.run_tool`: an nft with one table.

    Attributes:
        rules: The table's text; None: there is none.
        history: Every table that was put in force.
        refuses: Commands that contain one of these fail.
    """

    def __init__(self) -> None:
        self.rules: str | None = None
        self.history: list[str] = []
        self.refuses: set[str] = set()

    async def __call__(self, command: Sequence[str], text: str) -> tuple[int, str]:
        """Run one command."""
        line = " ".join(command)
        if any(part in line for part in self.refuses):
            return 1, "Error: the test says so"
        if line == "nft -f -":
            self.rules = text if "chain" in text else None
            self.history.append(text)
        return 0, ""

    @property
    def is_open(self) -> bool:
        """Whether the table lets new flows pass."""
        return self.rules is not None and "masquerade" in self.rules
