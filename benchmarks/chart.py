"""The SVG chart: horizontal bars, one panel per decisive metric, the best contestants of each kind beside wgvsock."""

from __future__ import annotations

from html import escape
from typing import Final

from benchmarks.report import METRICS, OURS, Results, figure

PANELS: Final = (
    "tcp_up_1_gbps",
    "tcp_down_1_gbps",
    "tcp_up_1_cpu_ms_per_gbit",
    "udp_64_fixed_cpu_us_per_packet",
    "tcp_up_1_ping_ms",
)

_WIDTH: Final = 760
_LABELS: Final = 200
_BAR: Final = 18
_GAP: Final = 6
_TITLE: Final = 34
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#333}.t{font-weight:600}.o{fill:#1b6ac9}.x{fill:#b9c2cc}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.x{fill:#5a6570}}"
)


def draw(results: Results) -> str:
    """Return the chart of the medians as a complete SVG document."""
    body = []
    top = 0
    for metric in PANELS:
        medians = {system: results.median(system, metric) for system in results.values}
        bars = {system: value for system, value in medians.items() if value is not None}
        if bars:
            body += _panel(METRICS[metric], bars, top)
            top += _TITLE + len(bars) * (_BAR + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _GAP}" role="img">'
        f"<title>wgvsock against its rivals</title><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _panel(title: str, bars: dict[str, float], top: int) -> list[str]:
    longest = max(bars.values()) or 1.0
    room = _WIDTH - _LABELS - 70
    lines = [f'<text class="t" x="0" y="{top + 22}">{escape(title)}</text>']
    for index, (system, value) in enumerate(bars.items()):
        y = top + _TITLE + index * (_BAR + _GAP)
        length = max(1.0, room * value / longest)
        kind = "o" if system == OURS else "x"
        lines += [
            f'<text x="{_LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(system)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
            f'<text x="{_LABELS + length + 6:.1f}" y="{y + 14}">{figure(value)}</text>',
        ]
    return lines
