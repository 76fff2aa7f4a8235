from __future__ import annotations

import pytest

from benchmarks.services import as_table, longest_gap, milestones

LOG = """\
time=2026-11-27T10:00:00.250Z level=info at=relay.service msg="the relay starts" inherited=0
no line of ours
time=2026-11-27T10:00:00.500Z level=info at=relay.enclaves.attendant msg=state enclave=wallet old=starting new=ready
time=2026-11-27T10:00:09.000Z level=info at=relay.service msg="the relay starts" inherited=0
"""


def test_milestones_are_the_first_of_each_message() -> None:
    assert milestones("relay", LOG, 1795773600.0) == {"relay: the relay starts": 0.25, "relay: state ready": 0.5}


PING = """\
PING 192.0.2.1 (192.0.2.1) 56(84) bytes of data.
[1795773600.000000] 64 bytes from 192.0.2.1: icmp_seq=1 ttl=63 time=0.5 ms
[1795773600.010000] 64 bytes from 192.0.2.1: icmp_seq=2 ttl=63 time=0.5 ms
[1795773600.050000] From 10.0.0.1 icmp_seq=3 Destination Host Unreachable
[1795773600.060000] 64 bytes from 192.0.2.1: icmp_seq=6 ttl=63 time=0.5 ms
"""


def test_the_longest_gap_is_between_two_answers() -> None:
    assert longest_gap(PING) == pytest.approx(0.05)
    assert longest_gap(PING.splitlines()[1]) is None


def test_the_table_tells_stages_in_their_order() -> None:
    spread = {"median": 0.5, "min": 0.4, "max": 0.9}
    table = as_table(
        {
            "ready_seconds": spread,
            "start_processor_seconds": {"relay": 0.3},
            "stages_seconds": {"relay: state ready": 0.5, "relay: the relay starts": 0.25},
            "idle_percent": {"relay": 0.3},
            "longest_gap_ms": {"quiet": spread},
            "foreign_load": 0.1,
        }
    )
    assert table.index("the relay starts") < table.index("state ready")
    assert "exec to READY: 0.5 s (0.4 to 0.9)" in table
    assert "idle: relay 0.30 % of a core" in table
