"""Medians over the rounds, ratios between contestants, and the targets, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wgvsock.telemetry.schema import SCHEMA

METRICS: Final = {
    "tcp_up_1_gbps": "TCP up, Gbit/s",
    "tcp_down_1_gbps": "TCP down, Gbit/s",
    "tcp_up_4_gbps": "TCP up, 4 streams, Gbit/s",
    "tcp_down_4_gbps": "TCP down, 4 streams, Gbit/s",
    "tcp_up_1_cpu_ms_per_gbit": "CPU up, ms/Gbit",
    "tcp_down_1_cpu_ms_per_gbit": "CPU down, ms/Gbit",
    "tcp_up_4_cpu_ms_per_gbit": "CPU up, 4 streams, ms/Gbit",
    "tcp_down_4_cpu_ms_per_gbit": "CPU down, 4 streams, ms/Gbit",
    "udp_64_fixed_cpu_us_per_packet": "UDP 64 B at 20 kpps, CPU µs/packet",
    "udp_64_fixed_loss_percent": "UDP 64 B at 20 kpps, loss %",
    "udp_1300_fixed_cpu_us_per_packet": "UDP 1300 B at 20 kpps, CPU µs/packet",
    "udp_1300_fixed_loss_percent": "UDP 1300 B at 20 kpps, loss %",
    "udp_64_flood_kpps": "UDP 64 B flood, delivered kpps",
    "udp_1300_flood_kpps": "UDP 1300 B flood, delivered kpps",
    "idle_ping_ms": "ping, idle, ms",
    "tcp_up_1_ping_ms": "ping under TCP up, ms",
    "tcp_down_1_ping_ms": "ping under TCP down, ms",
    "tcp_up_4_ping_ms": "ping under TCP up, 4 streams, ms",
    "tcp_down_4_ping_ms": "ping under TCP down, 4 streams, ms",
    "peak_memory_mib": "largest process, MiB",
}
"""Every metric with its title, in the table's order."""

OURS: Final = "wgvsock gso"
OURS_COMPILED: Final = "wgvsock compiled"
OURS_PLAIN: Final = "wgvsock plain"
OURS_USERSPACE: Final = "wgvsock userspace"
RIVAL: Final = "wireguard-go"
LIMIT: Final = "C, AEAD"
"""The same job in C, with OpenSSL."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target for wgvsock's median, relative to another contestant's.

    Attributes:
        metric: A key of `METRICS`.
        against: The other contestant.
        factor: Limit of wgvsock's median divided by the other's.
        at_least: Whether it is a lower limit.
    """

    metric: str
    against: str
    factor: float
    at_least: bool

    def met(self, ours: float, theirs: float) -> bool:
        """Return whether these medians meet the target."""
        limit = self.factor * theirs
        return ours >= limit if self.at_least else ours <= limit


_WAYS: Final = ("up", "down")

TARGETS: Final = (
    *(Target(f"tcp_{way}_1_gbps", RIVAL, 2.2, at_least=True) for way in _WAYS),
    *(Target(f"tcp_{way}_1_gbps", OURS_PLAIN, 6.0, at_least=True) for way in _WAYS),
    *(Target(f"tcp_{way}_1_gbps", LIMIT, 0.9, at_least=True) for way in _WAYS),
    *(Target(f"tcp_{way}_1_cpu_ms_per_gbit", RIVAL, 0.45, at_least=False) for way in _WAYS),
    *(Target(f"tcp_{way}_1_cpu_ms_per_gbit", LIMIT, 1.25, at_least=False) for way in _WAYS),
    *(Target(f"udp_{size}_fixed_cpu_us_per_packet", RIVAL, 0.6, at_least=False) for size in (64, 1300)),
    *(Target(f"udp_{size}_fixed_loss_percent", RIVAL, 1.0, at_least=False) for size in (64, 1300)),
    Target("udp_64_flood_kpps", RIVAL, 4.0, at_least=True),
    Target("udp_1300_flood_kpps", RIVAL, 1.0, at_least=True),
    Target("idle_ping_ms", RIVAL, 0.75, at_least=False),
    *(Target(f"tcp_{way}_1_ping_ms", RIVAL, 0.5, at_least=False) for way in _WAYS),
)


@dataclass
class Results:
    """All values of a run.

    Attributes:
        values: By contestant and metric, one value per round.
        foreign_load: Share of the machine that others used, from 0 to 1, sampled in the pauses.
        skipped: Contestants that did not run, and why.
        versions: The contestants' own version texts.
        micro: Results of the micro benchmarks, in microseconds: see `benchmarks.micro`.
    """

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    foreign_load: list[float] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    micro: dict[str, Any] = field(default_factory=dict)

    def add(self, system: str, values: Mapping[str, float]) -> None:
        """Add the result of one measurement of one contestant."""
        metrics = self.values.setdefault(system, {})
        for metric, value in values.items():
            metrics.setdefault(metric, []).append(value)

    def median(self, system: str, metric: str) -> float | None:
        """Return the median over the rounds, or None if it was not measured."""
        values = self.values.get(system, {}).get(metric)
        return statistics.median(values) if values else None


def as_json(results: Results, setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return the machine-readable report."""
    return {
        "schema": SCHEMA,
        "kind": "benchmark",
        "ok": OURS in results.values,
        **setup,
        "foreign_load": {
            "median": round(statistics.median(results.foreign_load or [0.0]), 3),
            "maximum": round(max(results.foreign_load, default=0.0), 3),
        },
        "systems": {
            system: {
                metric: {"median": round(statistics.median(values), 4), "values": [round(v, 4) for v in values]}
                for metric, values in metrics.items()
            }
            for system, metrics in results.values.items()
        },
        "versions": results.versions,
        "skipped": results.skipped,
        "ratios": _ratios(results),
        "targets": _targets(results),
        "micro": results.micro,
    }


def as_table(results: Results) -> str:
    """Return the report for people: one line per metric, one column per contestant, then the targets."""
    systems = list(results.values)
    rows = [["", *systems]]
    for metric, title in METRICS.items():
        medians = [results.median(system, metric) for system in systems]
        if any(value is not None for value in medians):
            rows.append([title, *("-" if value is None else figure(value) for value in medians)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines += ["", "targets (ours / theirs, medians)"]
    for target in _targets(results):
        sign = ">=" if target["at_least"] else "<="
        verdict = "met" if target["met"] else "MISSED"
        lines.append(
            f"  {verdict:6} {METRICS[target['metric']]}: {figure(target['ours'])} / {figure(target['theirs'])} "
            f"{target['against']}, wanted {sign} {target['factor']:g}x"
        )
    load = results.foreign_load or [0.0]
    lines += ["", f"foreign load: median {statistics.median(load):.0%}, maximum {max(load):.0%} of the machine"]
    lines += [f"skipped: {name}: {why}" for name, why in results.skipped.items()]
    return "\n".join(lines)


def _ratios(results: Results) -> dict[str, dict[str, float]]:
    """Return wgvsock's medians divided by each other contestant's, for every metric that both have."""
    ratios: dict[str, dict[str, float]] = {}
    for system in results.values:
        for metric in METRICS:
            ours, theirs = results.median(OURS, metric), results.median(system, metric)
            if system != OURS and ours is not None and theirs:
                ratios.setdefault(system, {})[metric] = round(ours / theirs, 3)
    return ratios


def _targets(results: Results) -> list[dict[str, Any]]:
    outcome = []
    for target in TARGETS:
        ours, theirs = results.median(OURS, target.metric), results.median(target.against, target.metric)
        if ours is not None and theirs is not None:
            outcome.append(
                {
                    "metric": target.metric,
                    "against": target.against,
                    "factor": target.factor,
                    "at_least": target.at_least,
                    "ours": round(ours, 4),
                    "theirs": round(theirs, 4),
                    "met": target.met(ours, theirs),
                }
            )
    return outcome


def figure(value: float) -> str:
    """Return a value with three digits, and large ones whole."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
