"""The kernel in memory keeps its settings and refuses what the test wants refused."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.filter.apply import Ran
from wgvsock.system.netlink import Netlink, Route
from wgvsock.testing import without_waiting
from wgvsock.testing.kernel import MemoryFilter, MemoryKernel


def test_it_has_every_public_method_of_netlink() -> None:
    wanted = {name for name in vars(Netlink) if not name.startswith("_")}
    assert wanted <= set(dir(MemoryKernel))


@without_waiting
async def test_it_keeps_what_it_was_told() -> None:
    async with MemoryKernel().open(lambda undo: undo) as kernel:
        for changed in (True, False):
            assert await kernel.bring_up("wg0", mtu=1400, queue_length=5, group=7) is changed
            assert await kernel.set_addresses("wg0", [ip_interface("10.0.0.1/24")]) is changed
            assert await kernel.set_routes("wg0", [Route(ip_network("0.0.0.0/0"))]) is changed
        assert await kernel.networks(besides=("lo",)) == [("wg0", ip_interface("10.0.0.1/24"))]
        assert await kernel.networks(besides=("wg0",)) == []
        off = await kernel.forwarding_switches({4: "eth0", 6: "eth0"})
        assert [switch.value for switch in off] == ["0/0", "0"]
        assert await kernel.enable_forwarding("wg0", off)
        assert not await kernel.enable_forwarding("wg0", off)
        assert kernel.forwarding == {"wg0", "eth0", "ipv6"}
        assert not kernel.forwards_ipv4()
        found = await kernel.interface("wg0")
        assert (found.mtu, found.is_up) == (1400, True)
        assert await kernel.default_interface(4) == "eth0"
        assert kernel.addresses["wg0"] == [ip_interface("10.0.0.1/24")]
        assert kernel.routes["wg0"] == [Route(ip_network("0.0.0.0/0"))]
        with pytest.raises(NetlinkSetupError):
            await kernel.interface("nope")
        kernel.refuses.add("bring_up")
        with pytest.raises(NetlinkSetupError, match="cannot bring_up"):
            await kernel.bring_up("wg0")


@without_waiting
async def test_the_filter_holds_tables_by_name() -> None:
    tool = MemoryFilter()
    table = "table inet x\ndelete table inet x\ntable inet x {\n chain masquerade\n}\n"
    assert await tool(["nft", "-c", "-f", "-"], table) == Ran(0)
    assert not tool.is_open
    await tool(["nft", "-f", "-"], table)
    assert tool.is_open
    assert (await tool(["nft", "-s", "-t", "list", "table", "inet", "x"], "")).output == table
    assert (await tool(["nft", "list", "tables"], "")).output == "table inet x\n"
    await tool(["nft", "-f", "-"], "table inet x\ndelete table inet x\n")
    assert (await tool(["nft", "list", "tables"], "")).output == ""
    assert tool.rules is None
    assert len(tool.history) == 2
    await tool(["nft", "-f", "-"], "add element inet x set { 10.0.0.1 timeout 1s }\n")
    assert (len(tool.pinned), len(tool.history)) == (1, 2)
    tool.refuses.add("nft")
    assert (await tool(["nft", "list", "tables"], ""))[0] == 1
