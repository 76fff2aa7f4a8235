"""Rates between two snapshots, for people and as JSON. Odd answers give no odd rates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.cli.statuses import broken, enclave, relay
from tests.unit.control_sockets import ControlSockets
from wgvsock.cli import main
from wgvsock.cli.top import as_json, compare, render
from wgvsock.telemetry.endpoint import as_json as answer

SOCKET = "/run/wgvsock/relay.sock"
GOLDEN = Path(__file__).parent / "golden"


def at(seconds: float, processor: float, *enclaves: dict[str, Any], **changes: Any) -> dict[str, Any]:
    clock = {"monotonic_seconds": seconds, "processor_seconds": processor}
    return {**relay(*enclaves), **clock, **changes}


def carries(name: str, received: int, sent: int, **changes: Any) -> dict[str, Any]:
    peer = {"rx_bytes": received, "tx_bytes": sent, "rx_packets": received // 1000, "tx_packets": sent // 1000}
    return enclave(name=name, wireguard={"interface": "wg0", "peers": [peer]}, **changes)


def works(processors: Any, at: Any, busy: Any, agent: Any, percent: Any = 37.2) -> dict[str, Any]:
    names = ("processors", "clock_seconds", "busy_seconds", "agent_seconds", "percent", "agent_percent")
    return {"processor": dict(zip(names, (processors, at, busy, agent, percent, 9.0), strict=True))}


FIRST = at(100.0, 5.0, carries("wallet", 1_000_000, 0), carries("vault", 0, 0, counters={"dropped": {"no_session": 5}}))
SECOND = at(
    102.0,
    6.5,
    carries("wallet", 101_000_000, 4_000_000),
    carries(
        "vault", 0, 0, ready=False, conditions=broken(path=False), counters={"dropped": {"no_session": 25, "replay": 2}}
    ),
)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_golden_text(columns: int) -> None:
    shown = "\n".join(line.text for line in render(SECOND, compare(FIRST, SECOND), columns)) + "\n"
    assert shown == (GOLDEN / f"top-{columns}.txt").read_text(encoding="utf-8")
    assert max(map(len, shown.splitlines())) <= columns


def test_rates_are_those_between_two_looks() -> None:
    sample = as_json(compare(FIRST, SECOND))
    assert (sample["seconds"], sample["processor_percent"]) == (2.0, 75.0)
    wallet, vault = sample["enclaves"]
    assert wallet["rx_bytes_per_second"] == 50_000_000
    assert wallet["tx_packets_per_second"] == 2000
    assert vault["dropped_per_second"] == {"no_session": 10.0, "replay": 1.0}


@pytest.mark.parametrize(
    "changes", [{"pid": 2}, {"monotonic_seconds": 99.0}, {"monotonic_seconds": "x"}, {"enclaves": None}]
)
def test_another_process_or_an_odd_answer_gives_no_odd_rate(changes: dict[str, Any]) -> None:
    sample = compare(FIRST, {**SECOND, **changes})
    assert all(rate >= 0 for load in sample.loads for rate in load.rates.values())
    assert sample.processor is None or sample.processor >= 0
    render(SECOND, sample, 80)


def test_a_peer_that_took_another_one_s_place() -> None:
    after = at(102.0, 6.0, carries("wallet", 10, 10))
    assert set(compare(FIRST, after).loads[0].rates.values()) == {0.0}


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        (works(2, 900.0, 120.0, 30.0), works(2, 910.0, 135.0, 32.0), 150.0),  # its own clock decides, not the relay's
        (works(2, 900.0, 120.0, 30.0), works(2, 900.0, 120.0, 30.0), 37.2),  # no report since
        (works(2, 900.0, 120.0, 30.0), works(2, 900.5, 120.5, 30.0), 37.2),  # one that came too soon for a rate
        ({"processor": None}, works(2, 900.0, 120.0, 30.0), 37.2),  # the first look at it
        (works(2, 900.0, 120.0, 30.0), works(2, 910.0, 100.0, 32.0), 0.0),  # a counter that goes back
        (works(2, 900.0, 120.0, 30.0), works(2, 910.0, 9e12, 32.0), 200.0),  # more than its processors can do
        (works(2, 900.0, 120.0, 30.0), works(None, 910.0, 135.0, 32.0), 0.0),
        (works(2, 900.0, 120.0, 30.0), {"processor": None}, None),
        (works(2, 900.0, 120.0, 30.0), works(2, 905.0, 121.0, 32.0, percent=None), None),  # another agent
        (works(2, 900.0, 120.0, 30.0), {"processor": "x"}, None),
    ],
)
def test_the_processor_use_inside_an_enclave(before: dict[str, Any], after: dict[str, Any], percent: float) -> None:
    sample = compare(
        at(100.0, 5.0, carries("wallet", 0, 0, **before)), at(102.0, 5.0, carries("wallet", 0, 0, **after))
    )
    assert as_json(sample)["enclaves"][0]["processor_percent"] == percent
    shown = render(relay(), sample, 80)[2].text
    assert ("-  ready" if percent is None else f"{percent:.0f} %  ready") in shown


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_it_looks_again_and_again(
    sockets: ControlSockets,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    left = [FIRST, SECOND, SECOND]
    slept: list[float] = []
    monkeypatch.setattr("wgvsock.cli.top.time", SimpleNamespace(sleep=slept.append))
    sockets.serve(SOCKET, {("GET", "/status"): lambda: answer(left.pop(0))})
    assert main(["top", "--socket", SOCKET, "-n", "2", "-i", "0.5", *options]) == 0
    assert slept == [0.5, 0.5]
    lines = capsys.readouterr().out.splitlines()
    if options:
        assert [json.loads(line)["seconds"] for line in lines] == [2.0, 0.0]
    else:
        assert lines[0] == "relay relay: 1 of 2 ready, processor 75 %"


@pytest.mark.parametrize("seconds", ["0", "nan", "x"])
def test_an_interval_that_is_none(seconds: str) -> None:
    with pytest.raises(SystemExit):
        main(["top", "-i", seconds])
