"""What the packet filter must never do, whatever else is requested."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests import egress_cases
from wgvsock.egress.closed import closed_network
from wgvsock.system.filter.apply import run_tool
from wgvsock.system.filter.iptables import render_iptables
from wgvsock.system.filter.nft import render_nft
from wgvsock.system.filter.rules import Ruleset

RULES = Ruleset("relay", "wg0", ((4, "eth0"), (6, "eth0")), (ip_network("10.73.0.0/24"), ip_network("fd73::/64")))

CREDENTIALS = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fe80::1")
"""Instance metadata, the ECS agent, the EKS Pod Identity Agent, and any other link-local address."""


@pytest.mark.parametrize("address", CREDENTIALS)
@pytest.mark.parametrize("policy", ["open", "networks"])
def test_what_hands_out_credentials_is_closed_before_anything_is_allowed(address: str, policy: str) -> None:
    """Also by a rule for 0.0.0.0/0."""
    rules = replace(RULES, policy=egress_cases.policy(policy))
    network = closed_network(ip_address(address))
    assert network is not None
    lines = render_nft(rules).split("chain egress {")[1].split("}\n\tchain")[0].splitlines()
    family = "ip" if network.version == 4 else "ip6"
    (closed,) = (line for line in lines if f"ct original {family} daddr {{" in line and "closed network" in line)
    assert str(network) in closed
    assert closed.endswith('counter goto deny comment "closed network"')
    assert not any("goto admit" in line for line in lines[: lines.index(closed)])
    saved = render_iptables(rules, network.version).splitlines()
    at = next(number for number, line in enumerate(saved) if "-EGR" in line and f"--ctorigdst {network} " in line)
    assert saved[at].endswith('--comment "closed network" -g WGVSOCK-relay-DENY')
    assert not any("-A WGVSOCK-relay-EGR" in line and line.endswith("-ADM") for line in saved[:at])


@pytest.mark.asyncio
async def test_a_tool_that_runs_when_its_caller_is_cancelled_changes_nothing_any_more(tmp_path: Path) -> None:
    """SIGTERM cancels the opening code: nft's remaining work must not follow the removal of the rules."""
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
