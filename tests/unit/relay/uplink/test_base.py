"""The snapshot of the kernel's uplink."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from wgvsock.relay.enclaves.interface import make_tunnel_config
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.base import UplinkSnapshot
from wgvsock.relay.uplink.kernel import KernelUplink
from wgvsock.runtime.journal import Journal
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.machine import MemoryMachine


def test_a_snapshot_is_a_value_of_its_own(spec: EnclaveSpec, tmp_path: Path) -> None:
    machine = MemoryMachine()
    journal = Journal(str(tmp_path), "relay", machine.performers())

    async def look() -> tuple[UplinkSnapshot | None, UplinkSnapshot | None, UplinkSnapshot | None]:
        uplink = KernelUplink(cast("Any", machine.kernel), journal.scope("relay"), machine)
        before = uplink.snapshot()
        found = await uplink.find(spec)
        await uplink.prepare(spec, make_tunnel_config(spec, found, ResolverSettings()))
        closed = uplink.snapshot()
        await uplink.open()
        return before, closed, uplink.snapshot()

    before, closed, opened = asyncio.run(look())
    assert before is None
    assert closed is not None
    assert opened is not None
    assert (closed.is_open, opened.is_open) == (False, True)
    assert (opened.owner, opened.backend, opened.interfaces, opened.mtu) == ("relay", "nft", "eth0", 1500)
