"""``wgvsock top [--interval S] [-n N]``: show the rates and drops of each enclave of a relay, updated every second.

Rates are averages between two updates, by the relay's own clock. ``in`` comes from the enclave and ``out`` goes to it.
``cpu`` is the processor use inside the enclave, which its agent reports every 5 s: 100 % is one CPU. One relay process
serves all of its enclaves, so the processor use in the first line is that of the whole relay.

Exit status: 0 after N updates, 3 if the relay is not running, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wgvsock.cli.foreign import at, items, text
from wgvsock.cli.output import add_schema, print_json
from wgvsock.cli.screen import Line, Tone, show, table, width
from wgvsock.cli.status import add_socket, ask, socket_path
from wgvsock.cli.status_text import state
from wgvsock.cli.units import milliseconds, number, size
from wgvsock.text import shortened

_HEADING: Final = ("enclave", "in", "out", "pkts in", "out", "drops", "path", "cpu", "state")
_RIGHT: Final = frozenset(range(1, 8))
_KEYS: Final = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
_MAX_ENCLAVES: Final = 126
"""The most that a relay serves."""

_REPORTS_APART: Final = 1.0
"""Seconds that the relay leaves between two reports of a rate."""

_MAX_REASONS: Final = 8
_MAX_TEXT: Final = 24


@dataclass(frozen=True, slots=True)
class Load:
    """Traffic of one enclave between two updates.

    Attributes:
        name: Name of the enclave.
        rates: Bytes and packets a second, by the keys of a peer's status.
        drops: Dropped packets a second, by reason. Reasons without drops are left out.
        rtt: Round-trip time to the enclave's kernel in milliseconds. None: unknown.
        processor: Processor use inside the enclave, in percent of one CPU. None: unknown.
        agent: The part of it that its agent uses.
        state: The state in words.
        ready: Whether packets may pass.
    """

    name: str
    rates: Mapping[str, float]
    drops: Mapping[str, float]
    rtt: float | None
    processor: float | None
    agent: float | None
    state: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """Activity of a relay between two updates.

    Attributes:
        seconds: Time between them.
        processor: Processor use, in percent of one CPU. None: unknown.
        loads: Traffic of each enclave.
    """

    seconds: float
    processor: float | None
    loads: tuple[Load, ...] = field(default_factory=tuple)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``top`` to the commands of ``wgvsock``."""
    parser = commands.add_parser(
        "top",
        help="show rates, drops and processor use continuously",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-i", "--interval", type=_interval, default=1.0, metavar="S", help="default: %(default)g s")
    parser.add_argument("-n", "--number", type=int, metavar="N", help="end after this many updates")
    add_socket(parser, named=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_schema(parser, "TOP")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        TransportError: The relay is not running, or does not answer.
    """
    path = args.socket or socket_path("relay", args.config, args.name)
    before = ask(path, "GET", "/status")
    looks = 0
    while args.number is None or looks < args.number:
        time.sleep(args.interval)
        status = ask(path, "GET", "/status")
        sample = compare(before, status)
        if args.json:
            print_json(as_json(sample))
        else:
            show(render(status, sample, width()), redraw=True)
        before, looks = status, looks + 1
    return 0


def compare(before: Any, after: Any) -> Sample:
    """The activity between two snapshots. If another process made the second one, all rates are 0."""
    seconds = _grown(before, after, "monotonic_seconds")
    if seconds <= 0 or at(before, "pid") != at(after, "pid"):
        seconds, before = 0.0, None
    earlier = {text(one, "name", most=_MAX_TEXT): one for one in items(before, "enclaves")[:_MAX_ENCLAVES]}
    loads = []
    for tunnel in items(after, "enclaves")[:_MAX_ENCLAVES]:
        name = text(tunnel, "name", most=_MAX_TEXT)
        loads.append(_load(name, earlier.get(name), tunnel, seconds))
    spent = _grown(before, after, "processor_seconds")
    return Sample(seconds, 100 * spent / seconds if seconds else None, tuple(loads))


def render(status: Any, sample: Sample, columns: int) -> list[Line]:
    """A sample as text."""
    processor = "?" if sample.processor is None else f"{sample.processor:.0f} %"
    ready = sum(load.ready for load in sample.loads)
    head = f"relay {text(status, 'name', most=_MAX_TEXT)}: {ready} of {len(sample.loads)} ready, processor {processor}"
    rows = [_HEADING, *(_row(load) for load in sample.loads)]
    heading, *lines = table(rows, _RIGHT)
    tones: list[Tone] = ["" if load.ready else "bad" for load in sample.loads]
    shown = [heading, *(Line(line.text, tone) for line, tone in zip(lines, tones, strict=True))]
    drops = [
        Line(f"{load.name} drops {', '.join(f'{reason} {rate:.0f}/s' for reason, rate in load.drops.items())}", "warn")
        for load in sample.loads
        if load.drops
    ]
    return [Line(head), *(Line(_cut(line.text, columns), line.tone) for line in (*shown, *drops))]


def as_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON values."""
    enclaves = [
        {
            "name": load.name,
            "ready": load.ready,
            **{f"{key}_per_second": round(rate, 1) for key, rate in load.rates.items()},
            "dropped_per_second": {reason: round(rate, 1) for reason, rate in load.drops.items()},
            "rtt_ms": load.rtt,
            "processor_percent": _rounded(load.processor),
            "agent_processor_percent": _rounded(load.agent),
        }
        for load in sample.loads
    ]
    return {"seconds": sample.seconds, "processor_percent": _rounded(sample.processor), "enclaves": enclaves}


def _load(name: str, before: Any, after: Any, seconds: float) -> Load:
    def rate(grown: float) -> float:
        return grown / seconds if seconds else 0.0

    rates = {key: rate(_sum(after, key) - _sum(before, key)) for key in _KEYS}
    if min(rates.values()) < 0:  # another peer has replaced the previous one
        rates = dict.fromkeys(_KEYS, 0.0)
    reasons = at(after, "counters", "dropped")
    grown = {
        shortened(str(reason), _MAX_TEXT): rate(_grown(before, after, "counters", "dropped", reason))
        for reason in (list(reasons) if isinstance(reasons, dict) else [])
    }
    most = sorted(((each, by) for each, by in grown.items() if by > 0), key=lambda pair: -pair[1])
    rtt = number(at(after, "path", "rtt_ms", "last"))
    return Load(
        name,
        rates,
        dict(most[:_MAX_REASONS]),
        rtt,
        _used(before, after, "busy_seconds", "percent"),
        _used(before, after, "agent_seconds", "agent_percent"),
        state(after),
        at(after, "ready") is True,
    )


def _used(before: Any, after: Any, seconds: str, percent: str) -> float | None:
    """Processor use in an enclave, in percent of one CPU. None: unknown.

    It is the average between two updates, by the enclave's clock. If too few reports have arrived in between, it is the
    relay's last known average.
    """
    known = number(at(after, "processor", percent))
    earlier, passed = number(at(before, "processor", seconds)), _grown(before, after, "processor", "clock_seconds")
    if known is None or earlier is None or passed < _REPORTS_APART:
        return known
    most = 100 * (number(at(after, "processor", "processors")) or 0.0)
    return min(most, 100 * _grown(before, after, "processor", seconds) / passed)


def _row(load: Load) -> tuple[str, ...]:
    dropped = sum(load.drops.values())
    return (
        load.name,
        size(load.rates["rx_bytes"], per="/s"),
        size(load.rates["tx_bytes"], per="/s"),
        f"{load.rates['rx_packets']:.0f}/s",
        f"{load.rates['tx_packets']:.0f}/s",
        f"{dropped:.0f}/s",
        "-" if load.rtt is None else milliseconds(load.rtt),
        "-" if load.processor is None else f"{load.processor:.0f} %",
        load.state,
    )


def _sum(tunnel: Any, key: str) -> float:
    return sum(number(at(peer, key)) or 0.0 for peer in items(tunnel, "wireguard", "peers")[:_MAX_ENCLAVES])


def _grown(before: Any, after: Any, *path: str) -> float:
    """Growth of a counter. 0 if there is no such counter, or if it was reset."""
    now, then = number(at(after, *path)), number(at(before, *path))
    return 0.0 if now is None else max(0.0, now - (then or 0.0))


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 1)


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: columns - 1] + "…"


def _interval(value: str) -> float:
    seconds = float(value)
    if not 0.1 <= seconds <= 3600:  # also refuses NaN
        raise argparse.ArgumentTypeError("not a number of seconds from 0.1 to 3600")
    return seconds
