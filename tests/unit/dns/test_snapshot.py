from __future__ import annotations

from tests.unit.dns.queries import forwarding, says
from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.testing import without_waiting


@without_waiting
async def test_a_snapshot_stays_as_it_is() -> None:
    with forwarding(says()) as (forwarder, _):
        before = forwarder.snapshot()
        forwarder.counts["answered"] += 1
        assert isinstance(before, ForwarderSnapshot)
        assert before.queries == {}
        assert forwarder.snapshot().queries == {"answered": 1}
