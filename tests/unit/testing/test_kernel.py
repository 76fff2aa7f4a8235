"""The kernel in memory keeps what it was told and refuses what the test wants refused."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.netlink import Netlink, Route
from wgvsock.testing import without_waiting
from wgvsock.testing.kernel import MemoryFilter, MemoryKernel


def test_it_has_every_public_method_of_netlink() -> None:
    wanted = {name for name in vars(Netlink) if not name.startswith("_")}
    assert wanted <= set(dir(MemoryKernel))


@without_waiting
async def test_it_keeps_what_it_was_told() -> None:
    async with MemoryKernel().open(lambda undo: undo) as kernel:
        await kernel.bring_up("wg0", mtu=1400, queue_length=5)
        await kernel.set_addresses("wg0", [ip_interface("10.0.0.1/24")])
        await kernel.set_routes("wg0", [Route(ip_network("0.0.0.0/0"))])
        assert not await kernel.enable_ipv4_forwarding("eth0")
        assert await kernel.enable_ipv4_forwarding("eth0")
        assert not kernel.enable_ipv6_forwarding("eth0")
        assert kernel.enable_ipv6_forwarding("eth0")
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
async def test_the_filter_holds_one_table() -> None:
    tool = MemoryFilter()
    assert await tool(["nft", "-c", "-f", "-"], "chain masquerade") == (0, "")
    assert not tool.is_open
    await tool(["nft", "-f", "-"], "chain masquerade")
    assert tool.is_open
    await tool(["nft", "-f", "-"], "delete")
    assert tool.rules is None
    assert len(tool.history) == 2
    tool.refuses.add("nft")
    assert (await tool(["nft", "list", "tables"], ""))[0] == 1
