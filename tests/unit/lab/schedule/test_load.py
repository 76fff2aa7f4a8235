from __future__ import annotations

import json

from lab.schedule.faults import Flow
from lab.schedule.load import Ledger


def state(ledger: Ledger, last: float, oldest: float | None = None) -> None:
    requests = {"http4": {"ok": 3, "last": last, "oldest": oldest}}
    ledger.note(json.dumps({"event": "state", "flows": {"tcp4": last, "udp6": last}, "requests": requests}))


def test_traffic_that_goes_on() -> None:
    ledger = Ledger("wallet egress", "egress")
    assert ledger.behind(10.0) == ["wallet egress: nothing yet"]
    state(ledger, 9.0)
    assert ledger.behind(10.0) == ["wallet egress tcp4", "wallet egress udp6", "wallet egress http4"]
    state(ledger, 11.0)
    assert ledger.behind(10.0) == []


def test_a_connection_that_is_not_over() -> None:
    ledger = Ledger("wallet egress", "egress")
    state(ledger, 11.0, oldest=8.0)
    assert ledger.pending(before=9.0)
    assert not ledger.pending(before=8.0)
    state(ledger, 11.0)
    assert not ledger.pending(before=20.0)


def test_what_broke_and_who_was_let_down() -> None:
    ledger = Ledger("wallet published", "published")
    ledger.note(json.dumps({"event": "cut", "time": 4.0, "flow": "tcp6", "why": "reset"}))
    ledger.note(json.dumps({"event": "failed", "time": 4.0, "begin": 1.0, "request": "http6", "why": "refused"}))
    (cut,), (failed,) = ledger.cuts, ledger.failed
    assert (cut.time, cut.flow, cut.what) == (4.0, Flow.PUBLISHED_TCP, "wallet published tcp6: reset")
    assert (failed.begin, failed.end, failed.what) == (1.0, 4.0, "wallet published http6: refused")
