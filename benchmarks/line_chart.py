"""The SVG chart of growth: one panel per series with logarithmic axes, and the growth in words above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.series import Series

_COLUMNS: Final = 3
_PANEL: Final = (300, 170)
"""Width and height of a panel, pixels."""
_PLOT: Final = (40, 44, 240, 96)
"""Left, top, width and height of the plot inside a panel, pixels."""
_STYLE: Final = (
    "text{font:11px system-ui,sans-serif;fill:#333}.t{font-weight:600}.a{stroke:#b9c2cc}"
    "polyline{fill:none;stroke:#1b6ac9;stroke-width:2}circle{fill:#1b6ac9}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.a{stroke:#5a6570}}"
)


def draw(series: Sequence[Series]) -> str:
    """Return the chart as a complete SVG document."""
    width, height = _COLUMNS * _PANEL[0], -(-len(series) // _COLUMNS) * _PANEL[1]
    body = [
        _panel(one, index % _COLUMNS * _PANEL[0], index // _COLUMNS * _PANEL[1]) for index, one in enumerate(series)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>what grows, and how</title><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _panel(series: Series, x: int, y: int) -> str:
    left, top, width, height = _PLOT
    numbers = [math.log10(number) for number, _ in series.points]
    costs = [math.log10(cost) for _, cost in series.points]
    # At least a factor of ten, so that noise looks like noise.
    low = math.floor(min(costs))
    high = max(math.ceil(max(costs)), low + 1)
    places = [
        (
            left + width * (number - numbers[0]) / (numbers[-1] - numbers[0]),
            top + height * (high - cost) / (high - low),
        )
        for number, cost in zip(numbers, costs, strict=True)
    ]
    subject, _, what = series.name.partition(": ")
    lines = [
        f'<g transform="translate({x},{y})">',
        f'<text class="t" x="4" y="16">{escape(subject)}: {escape(what)}, {escape(series.unit)}</text>',
        f'<text x="4" y="32">{escape(series.slope)}</text>',
        f'<path class="a" d="M{left} {top}v{height}h{width}" fill="none"/>',
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{10.0**high:g}</text>',
        f'<text x="{left - 4}" y="{top + height}" text-anchor="end">{10.0**low:g}</text>',
        f'<text x="{left}" y="{top + height + 14}">{series.points[0][0]:g}</text>',
        f'<text x="{left + width}" y="{top + height + 14}" text-anchor="end">{series.points[-1][0]:g}</text>',
        f'<polyline points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in places)}"/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>' for px, py in places),
        "</g>",
    ]
    return "\n".join(lines)
