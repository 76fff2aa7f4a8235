"""The bars of a run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from benchmarks.chart import draw
from benchmarks.report import OURS, Results


def test_each_contestant_has_a_bar_with_the_tables_figure() -> None:
    results = Results()
    results.add(OURS, {"tcp_up_1_cpu_ms_per_gbit": 228.4})
    results.add("slirp4netns", {"tcp_up_1_cpu_ms_per_gbit": 1712.3})
    texts = [element.text for element in ET.fromstring(draw(results)).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 - our own
    assert texts == ["CPU up, ms/Gbit", OURS, "228", "slirp4netns", "1712"]
