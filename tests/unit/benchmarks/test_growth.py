"""Growth is described in words, and the growing things are as described."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks import growth, line_chart
from benchmarks.series import Series
from wgvsock.wireguard import peer_for_packet


def series(cost: float, power: float) -> Series:
    return Series("things: one", "µs", tuple((10.0**n, cost * 10.0 ** (n * power)) for n in range(5)))


@pytest.mark.parametrize(
    ("power", "slope"),
    [
        (0.0, "flat"),
        (0.1, "flat"),
        (-0.5, "falls"),
        (1.0, "linear"),
        (1.1, "linear"),
        (0.5, "with the power 0.50 of the number"),
        (2.0, "with the power 2.00 of the number"),
    ],
)
def test_growth_in_words(power: float, slope: str) -> None:
    grown = series(3.0, power)
    assert grown.exponent == pytest.approx(power)
    assert grown.slope == slope


def test_a_device_with_peers_routes_to_each() -> None:
    device = growth.device_with(20)
    packets = [growth.packet_to(number) for number in range(20)]
    assert [peer_for_packet(device, packet) for packet in packets] == list(device.peers.values())


def test_a_table_has_as_many_networks_as_it_says() -> None:
    table = growth.table_of(100)
    assert [table.lookup(growth.address_of(number << 4).packed) for number in range(100)] == list(range(100))


def test_the_chart_has_a_line_for_each_series() -> None:
    drawn = ET.fromstring(line_chart.draw([series(3.0, 0.0), series(0.2, 1.0), series(7.0, 2.0), series(1.0, 0.5)]))  # noqa: S314 - our own
    lines = [element for element in drawn.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 4
    points = [tuple(map(float, point.split(","))) for point in lines[1].attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)  # up is more


def test_imports_are_measured_as_a_service_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """From byte code and without the garbage collector: the child itself checks this, and would fail."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    seen = "import sys, asyncio, gc; assert not sys.dont_write_bytecode and sys.pycache_prefix and not gc.isenabled()"
    cost, packages = growth.imports(seen, repetitions=1)
    assert "asyncio" in packages
    assert sum(packages.values()) <= abs(cost) * 1.001
