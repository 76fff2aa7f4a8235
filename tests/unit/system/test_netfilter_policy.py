"""What the packet filter must never do, whatever else it is asked for."""

from __future__ import annotations

import asyncio
import os
import signal
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from wgvsock.system.netfilter import CLOSED_DESTINATIONS, Ruleset, render_iptables, render_nft, run_tool

RULES = Ruleset("wg0", "eth0", (ip_network("10.73.0.0/24"), ip_network("fd73::/64")))

CREDENTIALS = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fe80::1")
"""Instance metadata, the ECS agent, the EKS Pod Identity Agent, and any other link-local address."""


@pytest.mark.parametrize("address", CREDENTIALS)
def test_what_hands_out_credentials_is_closed(address: str) -> None:
    (network,) = [closed for closed in CLOSED_DESTINATIONS if ip_address(address) in closed]
    family = "ip" if network.version == 4 else "ip6"
    nft = render_nft(RULES)
    assert nft.index(f"{family} daddr {network} counter reject") < nft.index('iifname "wg0" oifname "eth0" accept')
    iptables = render_iptables(RULES, network.version)
    assert iptables.index(f"-i wg0 -d {network} -j REJECT") < iptables.index("-i wg0 -o eth0 -j ACCEPT")


@pytest.mark.asyncio
async def test_a_tool_that_runs_when_its_caller_is_cancelled_changes_nothing_any_more(tmp_path: Path) -> None:
    """SIGTERM cancels whoever opens the way: what nft would still do must not come after the rules were taken back."""
    reports = tmp_path / "reports"
    os.mkfifo(reports)
    with os.fdopen(os.open(reports, os.O_RDWR)) as pipe:  # for both directions: opening it waits for nobody
        tool = f"read rules; echo $$ > {reports}; exec tail -f /dev/null"
        call = asyncio.create_task(run_tool(["sh", "-c", tool], "rules\n"))
        pid = int(await asyncio.to_thread(pipe.readline))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
