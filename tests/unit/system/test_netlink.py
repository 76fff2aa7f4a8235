"""Requests to the kernel through pyroute2's socket, replaced by a small model of the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Self, cast

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from wgvsock.runtime.journal import Undo
from wgvsock.system import netlink
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.facts import Fact
from wgvsock.system.netlink import ROUTE_PROTOCOL, Netlink, Route


class Message(dict[str, Any]):
    """Header fields by item, attributes by `get_attr`, as pyroute2's messages are."""

    def __init__(self, header: dict[str, Any], attributes: dict[str, Any]) -> None:
        super().__init__(header)
        self.attributes = attributes

    def get_attr(self, name: str) -> Any:
        return self.attributes.get(name)


class Kernel:
    """Interfaces, addresses and routes behind the calls of an `IPRoute`."""

    def __init__(self) -> None:
        self.links: dict[str, dict[str, Any]] = {}
        self.addresses: list[tuple[int, str]] = []
        self.routes: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.secondaries_go_with_primaries = True

    def add_link(self, name: str, *, up: bool = True, mtu: int = 1500, forwarding: int | None = 0) -> int:
        index = len(self.links) + 1
        self.links[name] = {"index": index, "up": up, "mtu": mtu, "forwarding": forwarding, "txqlen": 500, "group": 0}
        return index

    def message(self, name: str) -> Message:
        link = self.links[name]
        inet = None if link["forwarding"] is None else Message({}, {"AF_INET": {"forwarding": link["forwarding"]}})
        header = {"index": link["index"], "flags": 1 if link["up"] else 0}
        attributes = {"IFLA_IFNAME": name, "IFLA_MTU": link["mtu"], "IFLA_AF_SPEC": inet}
        return Message(header, {**attributes, "IFLA_TXQLEN": link["txqlen"], "IFLA_GROUP": link["group"]})

    async def link(self, verb: str, **options: Any) -> Any:
        if verb == "dump":
            return self._dump([self.message(name) for name in self.links])
        self.calls.append(("link", verb, options))
        names = [n for n, link in self.links.items() if options.get("ifname", n) == n]
        names = [n for n in names if options.get("index", self.links[n]["index"]) == self.links[n]["index"]]
        if not names:
            raise NetlinkError(errno.ENODEV, "No such device")
        if verb == "set":
            changes = {key: value for key, value in options.items() if key in {"mtu", "txqlen", "group"}}
            self.links[names[0]] |= {"up": options["state"] == "up", **changes}
        return [self.message(names[0])]

    async def addr(self, verb: str, **options: Any) -> Any:
        if verb == "dump":
            return self._dump(
                [
                    Message(
                        {"prefixlen": ip_interface(text).network.prefixlen, "index": index},
                        {("IFA_LOCAL" if "." in text else "IFA_ADDRESS"): text.split("/")[0]},
                    )
                    for index, text in self.addresses
                    if index == options.get("index", index)
                ]
            )
        self.calls.append(("addr", verb, options))
        entry = (options["index"], f"{options['address']}/{options['prefixlen']}")
        if verb == "add":
            self.addresses.append(entry)
        else:
            network = ip_interface(entry[1]).network
            position = self.addresses.index(entry)
            later = self.addresses[position + 1 :]
            if self.secondaries_go_with_primaries:
                later = [other for other in later if ip_interface(other[1]).network != network]
            self.addresses = self.addresses[:position] + later
        return []

    async def route(self, verb: str, **options: Any) -> Any:
        if verb == "dump":
            return self._dump([self._route(r) for r in self.routes if r["family"] == options["family"]])
        self.calls.append(("route", verb, options))
        if verb == "add":
            if any(r["dst"] == options["dst"] and r.get("priority") is None for r in self.routes):
                raise NetlinkError(errno.EEXIST, "File exists")
            self.routes.append(options)
        elif verb == "replace":
            (place,) = [
                n for n, r in enumerate(self.routes) if r["dst"] == options["dst"] and r["oif"] == options["oif"]
            ]
            self.routes[place] = options
        else:
            self.routes.remove(options)
        return []

    def _route(self, route: dict[str, Any]) -> Message:
        network = ip_network(route["dst"])
        header = {
            "family": route["family"],
            "dst_len": network.prefixlen,
            "table": route.get("table", 254),
            "type": route.get("type", 1),
            "proto": route.get("proto", 4),
        }
        attributes = {
            "RTA_DST": str(network.network_address) if network.prefixlen else None,
            "RTA_OIF": route.get("oif"),
            "RTA_GATEWAY": route.get("gateway"),
            "RTA_PRIORITY": route.get("priority"),
            "RTA_MULTIPATH": route.get("multipath"),
        }
        return Message(header, attributes)

    @staticmethod
    async def _dump(messages: list[Message]) -> AsyncIterator[Message]:
        for message in messages:
            yield message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(netlink, "IPRoute", lambda: kernel)
    return kernel


@pytest.fixture
def recorded() -> list[Undo]:
    return []


@pytest.fixture
def subject(kernel: Kernel, recorded: list[Undo], tmp_path: Path) -> Netlink:
    def record(undo: Undo) -> Undo:
        recorded.append(undo)
        return undo

    (tmp_path / "ip_forward").write_text("0\n")
    return Netlink(kernel, record, ipv6_conf=tmp_path, ipv4_forward=tmp_path / "ip_forward")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def undo(entry: Undo) -> None:
    async def perform() -> None:
        await netlink.performers()[entry.kind](entry.target, entry.value)

    run(perform())


def test_an_interface(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("eth0", mtu=9001, forwarding=1)
    kernel.add_link("odd", up=False, forwarding=None)
    found = run(subject.interface("eth0"))
    assert (found.index, found.name, found.mtu, found.is_up, found.ipv4_forwarding) == (1, "eth0", 9001, True, True)
    assert not run(subject.interface("odd")).ipv4_forwarding


def test_no_such_interface(subject: Netlink) -> None:
    with pytest.raises(NetlinkSetupError) as caught:
        run(subject.interface("nope"))
    assert caught.value.why == "No such device"
    assert caught.value.exit_code == 7


def test_the_default_route_with_the_lowest_metric(kernel: Kernel, subject: Netlink) -> None:
    first, second = kernel.add_link("eth0"), kernel.add_link("eth1")
    default = {"dst": "0.0.0.0/0", "family": socket.AF_INET}
    kernel.routes = [
        {**default, "oif": first, "priority": 100},
        {**default, "oif": second, "priority": 50},
        {**default, "oif": first, "table": 200},
        {**default, "oif": first, "type": 7},
        {**default, "dst": "10.0.0.0/8", "oif": first},
    ]
    assert run(subject.default_interface(4)) == "eth1"
    assert run(subject.default_interface(6)) is None


def test_a_multipath_default_route(kernel: Kernel, subject: Netlink) -> None:
    index = kernel.add_link("eth0")
    kernel.routes = [{"dst": "::/0", "family": socket.AF_INET6, "multipath": [{"oif": index}]}]
    assert run(subject.default_interface(6)) == "eth0"
    kernel.routes = [{"dst": "::/0", "family": socket.AF_INET6}]
    assert run(subject.default_interface(6)) is None


def test_bring_up(kernel: Kernel, subject: Netlink, recorded: list[Undo]) -> None:
    kernel.add_link("lo", up=False)
    run(subject.bring_up("lo", mtu=1400, queue_length=32))
    assert kernel.calls[-1] == ("link", "set", {"index": 1, "state": "up", "mtu": 1400, "txqlen": 32})
    assert recorded == [Undo("link_state", "lo", "down")]
    undo(recorded[0])
    assert not kernel.links["lo"]["up"]


def test_an_interface_that_is_as_wanted_is_left_alone(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("wg0", up=False)
    wanted = {"mtu": 1400, "queue_length": 32, "group": 7}
    assert run(subject.bring_up("wg0", **wanted))
    calls = len(kernel.calls)
    assert not run(subject.bring_up("wg0", **wanted))
    assert [verb for _, verb, _ in kernel.calls[calls:]] == ["get"]
    for changed in ({"mtu": 1280}, {"group": 0}, {"txqlen": 1}, {"up": False}):
        kernel.links["wg0"] |= changed
        assert run(subject.bring_up("wg0", **wanted))


def test_the_networks_of_other_interfaces(kernel: Kernel, subject: Netlink) -> None:
    for number, name in enumerate(("lo", "eth0", "wg0"), start=1):
        kernel.add_link(name)
        kernel.addresses.append((number, f"10.{number}.0.1/16"))
    assert run(subject.networks(besides=("lo", "wg0"))) == [("eth0", ip_interface("10.2.0.1/16"))]


def test_an_interface_that_is_gone_needs_no_undo(kernel: Kernel) -> None:
    undo(Undo("link_state", "gone", "down"))
    undo(Undo("ipv4_forwarding", "wgv-gone", "0/1"))
    assert kernel.calls == [("link", "set", {"ifname": "gone", "state": "down"})]


def test_addresses_become_exactly_these(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("wg0")
    kernel.addresses = [(1, "fe80::1/64")]
    assert run(subject.set_addresses("wg0", [ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64")]))
    assert kernel.addresses == [(1, "fe80::1/64"), (1, "10.73.0.2/24"), (1, "fd73::2/64")]
    assert [options.get("flags") for kind, _, options in kernel.calls if kind == "addr"] == [None, 2]
    kernel.calls.clear()
    assert not run(subject.set_addresses("wg0", [ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64")]))
    assert not [call for call in kernel.calls if call[0] == "addr"]


def test_a_new_address_survives_the_old_one_of_its_prefix(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("wg0")
    run(subject.set_addresses("wg0", [ip_interface("10.73.0.2/24")]))
    run(subject.set_addresses("wg0", [ip_interface("10.73.0.3/24")]))
    assert kernel.addresses == [(1, "10.73.0.3/24")]
    run(subject.set_addresses("wg0", []))
    assert kernel.addresses == []


def test_routes_become_exactly_these(kernel: Kernel, subject: Netlink) -> None:
    index = kernel.add_link("wg0")
    kernel.routes = [{"dst": "10.9.0.0/16", "family": socket.AF_INET, "oif": index, "proto": 2}]  # the kernel's own
    default = Route(ip_network("0.0.0.0/0"), ip_address("10.73.0.1"))
    run(subject.set_routes("wg0", [default, Route(ip_network("fd00::/8"))]))
    ours = [route for route in kernel.routes if route.get("proto") == ROUTE_PROTOCOL]
    assert {(route["dst"], route.get("gateway")) for route in ours} == {("0.0.0.0/0", "10.73.0.1"), ("fd00::/8", None)}
    run(subject.set_routes("wg0", [default]))
    assert len(kernel.routes) == 2
    run(subject.set_routes("wg0", []))
    assert [route["dst"] for route in kernel.routes] == ["10.9.0.0/16"]


def test_a_new_gateway_takes_the_old_one_s_place(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("wg0")
    everything = ip_network("0.0.0.0/0")
    assert run(subject.set_routes("wg0", [Route(everything, ip_address("10.73.0.1"))]))
    assert run(subject.set_routes("wg0", [Route(everything, ip_address("10.73.0.9"))]))
    assert [(r["dst"], r["gateway"]) for r in kernel.routes] == [("0.0.0.0/0", "10.73.0.9")]
    assert not run(subject.set_routes("wg0", [Route(everything, ip_address("10.73.0.9"))]))


def test_a_route_in_the_way(kernel: Kernel, subject: Netlink) -> None:
    kernel.add_link("wg0")
    kernel.routes = [{"dst": "0.0.0.0/0", "family": socket.AF_INET, "oif": 9}]
    with pytest.raises(NetlinkSetupError) as caught:
        run(subject.set_routes("wg0", [Route(ip_network("0.0.0.0/0"))]))
    assert caught.value.why == "File exists"
    assert "remove the route" in caught.value.fix


class FakeChannel:
    """A `RawNetlink` that only records."""

    changes: list[tuple[int, bytes]]
    refuses = False

    def __init__(self, family: int) -> None:
        assert family == socket.NETLINK_ROUTE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def change(self, kind: int, body: bytes) -> None:
        if self.refuses:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.changes.append((kind, body))


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> type[FakeChannel]:
    monkeypatch.setattr(netlink, "RawNetlink", FakeChannel)
    FakeChannel.changes, FakeChannel.refuses = [], False
    return FakeChannel


def switches(subject: Netlink, **uplinks: str) -> tuple[Fact, ...]:
    return cast("tuple[Fact, ...]", run(subject.forwarding_switches({int(v[1]): name for v, name in uplinks.items()})))


# struct ifinfomsg with index 1, then AF_SPEC(26) { AF_INET(2) { INET_CONF(1) { FORWARDING(1) = 1 } } }
ETH0_ON = bytes(4) + b"\1\0\0\0" + bytes(8) + bytes.fromhex("14001a00 10000200 0c000100 08000100 01000000")
WG0_ON = ETH0_ON.replace(b"\1\0\0\0" + bytes(8), b"\2\0\0\0" + bytes(8), 1)


@pytest.fixture
def links(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel.add_link("eth0")
    kernel.add_link("wg0")
    monkeypatch.setattr("wgvsock.system.netlink.socket.if_nametoindex", lambda name: kernel.links[name]["index"])
    return kernel


def test_ipv4_forwarding_by_one_message_an_interface(
    links: Kernel, subject: Netlink, recorded: list[Undo], channel: type[FakeChannel]
) -> None:
    needed = switches(subject, v4="eth0")
    assert needed == (Fact("ipv4_forwarding", "eth0", "0/0"),)
    assert run(subject.enable_forwarding("wg0", needed))
    assert channel.changes == [(19, WG0_ON), (19, ETH0_ON)]
    assert recorded == [Undo("ipv4_forwarding", "eth0", "0/0")]
    undo(Undo("ipv4_forwarding", "eth0", "0/1"))
    assert channel.changes[-1] == (19, ETH0_ON[:-4] + bytes(4))


def test_forwarding_that_is_on_is_left_alone(links: Kernel, subject: Netlink, channel: type[FakeChannel]) -> None:
    for name in links.links:
        links.links[name]["forwarding"] = 1
    assert not run(subject.enable_forwarding("wg0", switches(subject, v4="eth0")))
    assert channel.changes == []
    links.links["wg0"]["forwarding"] = 0
    assert run(subject.enable_forwarding("wg0", switches(subject, v4="eth0")))
    assert channel.changes == [(19, WG0_ON)]


@pytest.mark.parametrize(
    "case",
    [("0/0", "0", True), ("0/0", "1", False), ("0/1", "1", True), ("1/1", "1", True)],
)
def test_a_switch_that_somebody_else_needs_by_now_is_not_taken_back(
    links: Kernel,
    channel: type[FakeChannel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: tuple[str, str, bool],
) -> None:
    """Docker, started later, made the machine a router, and routes its containers' packets through eth0."""
    before, now, set_back = case
    machine = tmp_path / "machine"
    machine.write_text(now)
    monkeypatch.setattr(netlink, "_IPV4_FORWARD", machine)
    undo(Undo("ipv4_forwarding", "eth0", before))
    assert bool(channel.changes) is set_back


def test_forwarding_without_the_capability(links: Kernel, subject: Netlink, channel: type[FakeChannel]) -> None:
    channel.refuses = True
    with pytest.raises(NetlinkSetupError) as caught:
        run(subject.enable_forwarding("wg0", switches(subject, v4="eth0")))
    assert "NET_ADMIN" in caught.value.fix


def test_whether_the_machine_is_a_router(subject: Netlink, tmp_path: Path) -> None:
    assert not subject.forwards_ipv4()
    (tmp_path / "ip_forward").write_text("1\n")
    assert subject.forwards_ipv4()


def ipv6_conf(root: Path, forwarding: str, accept_ra: str) -> tuple[Path, Path]:
    files = root / "all" / "forwarding", root / "eth0" / "accept_ra"
    for file, value in zip(files, (forwarding, accept_ra), strict=True):
        file.parent.mkdir(exist_ok=True)
        file.write_text(value + "\n")
    return files


def test_ipv6_forwarding_keeps_router_advertisements(subject: Netlink, recorded: list[Undo], tmp_path: Path) -> None:
    forwarding, accept_ra = ipv6_conf(tmp_path, "0", "1")
    needed = switches(subject, v6="eth0")
    assert [switch.value for switch in needed] == ["1", "0"]
    assert run(subject.enable_forwarding("wg0", needed))
    assert (forwarding.read_text()[0], accept_ra.read_text()[0]) == ("1", "2")
    assert not run(subject.enable_forwarding("wg0", needed))
    for entry in reversed(recorded):
        undo(entry)
    assert (forwarding.read_text()[0], accept_ra.read_text()[0]) == ("0", "1")


def test_ipv6_forwarding_that_was_on_before(subject: Netlink, tmp_path: Path) -> None:
    _, accept_ra = ipv6_conf(tmp_path, "1", "0")
    assert not run(subject.enable_forwarding("wg0", switches(subject, v6="eth0")))
    assert accept_ra.read_text()[0] == "0"


def test_ipv6_forwarding_with_a_read_only_proc(
    subject: Netlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ipv6_conf(tmp_path, "0", "0")

    def refuse(path: Path, value: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("wgvsock.system.ipv6.write", refuse)
    monkeypatch.setattr("wgvsock.system.ipv6.os.access", lambda _path, mode: mode != os.W_OK)
    assert subject.barred_switches("eth0") == ("net.ipv6.conf.all.forwarding",)
    assert not subject.has_ipv6("eth0")
    with pytest.raises(NetlinkSetupError) as caught:
        run(subject.enable_forwarding("wg0", switches(subject, v6="eth0")))
    assert caught.value.why == "Read-only file system"
    assert "net.ipv6.conf.all.forwarding=1" in caught.value.fix


def test_no_ipv6_in_the_kernel(subject: Netlink) -> None:
    with pytest.raises(NetlinkSetupError, match="cannot read"):
        switches(subject, v6="eth0")


def test_a_sysctl_that_is_gone_needs_no_undo(tmp_path: Path) -> None:
    undo(Undo("sysctl", str(tmp_path / "gone"), "1"))


def test_open_netlink(kernel: Kernel) -> None:
    kernel.add_link("eth0")

    async def use() -> str:
        async with netlink.open_netlink(lambda entry: entry) as opened:
            return (await opened.interface("eth0")).name

    assert run(use()) == "eth0"


def test_another_error_while_undoing_is_told(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(verb: str, **options: Any) -> list[Message]:
        raise NetlinkError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kernel, "link", refuse)
    with pytest.raises(NetlinkSetupError, match="cannot set the link eth0 down"):
        undo(Undo("link_state", "eth0", "down"))


def test_ipv6_that_is_switched_off_has_a_remedy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    kernel.add_link("wg0")
    add = kernel.addr

    async def refuse(verb: str, **options: Any) -> Any:
        if verb == "add" and ":" in options["address"]:
            raise NetlinkError(errno.EACCES, "Permission denied")
        return await add(verb, **options)

    monkeypatch.setattr(kernel, "addr", refuse)
    subject = Netlink(kernel, lambda undo: undo)
    asyncio.run(subject.set_addresses("wg0", [ip_interface("10.73.0.1/24")]))
    with pytest.raises(NetlinkSetupError, match="disable_ipv6") as refused:
        asyncio.run(subject.set_addresses("wg0", [ip_interface("10.73.0.1/24"), ip_interface("fd73::1/64")]))
    assert refused.value.fix.startswith("set net.ipv6.conf.all.disable_ipv6")
