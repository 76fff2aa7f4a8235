"""Metrics follow their conventions, and rules and dashboard query only existing ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import ROOT
from wgvsock.telemetry.status import metrics

parser = pytest.importorskip(
    "prometheus_client.parser", reason="missing: prometheus-client (pip install -e '.[deploy]')"
)

MONITORING = ROOT / "deploy/monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]

BASE_UNITS = ("_seconds", "_bytes", "_ratio")
NO_UNIT = {
    *("up", "ready", "enclave_ready", "build_info", "egress_pins", "dns_in_flight", "enclave_processors"),
    *("uplink_connections", "uplink_max_connections"),
    *("application_running", "application_ready", "application_exit_status"),
}

TUNNEL: Mapping[str, Any] = {
    "name": 'wal"let\\',
    "state": "ready",
    "ready": True,
    "attestation": {"timestamp": "2026-01-01T00:00:00+00:00"},
    "provisioning": {"attempts": {"ok": 2, "rejected": 1}, "trusted_for_seconds": 61.5},
    "wireguard": {
        "peers": [
            {"public_key": "A=", "rx_bytes": 1, "tx_bytes": 2, "rx_packets": 3, "tx_packets": 4}
            | {"handshake_age_seconds": 5.5}
        ]
    },
    "counters": {"dropped": {"no_route": 7}},
    "path": {"rtt_ms": {"last": 1.5, "min": None, "p50": 2}, "sent": 9, "lost": 1},
    "nat": {
        "repairs": {"rules": 2},
        "deleted_flows": {"early": 3},
        "engine": {"connections": 4, "max_connections": 1024, "crowded": 1, "dropped": 2, "odd": 3}
        | {"restarts": 0, "resident": 9 << 20},
    },
    "application": {"running": True, "ready": True, "exit_status": 0, "starts": 1, "lost_lines": 2, "lost_bytes": 90},
    "dns": {"queries": {"answered": 8}, "upstream": {"timeout": 1}, "in_flight": 2},
    "processor": {"processors": 2, "busy_seconds": 9.5, "agent_seconds": 1.5},
    "clock_offset_seconds": -0.25,
    "egress": {
        "denied": {"default": 6},
        "default": "deny",
        "flows": {"allow 1": 5, "closed network": 2},
        "pins": 4,
        "names_refused": 3,
        "addresses_withheld": 1,
    },
}
STATUS: Mapping[str, Any] = {
    "role": "relay",
    "state": "ready",
    "ready": True,
    "processor_seconds": 12.5,
    "enclaves": [TUNNEL],
}
ENCLAVE: Mapping[str, Any] = {**TUNNEL, "role": "enclave", "attestation": None}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("promtool")
    if not program.exists():
        pytest.skip("missing: promtool (tools/promtool .venv/bin/promtool)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, cwd=MONITORING)


def documented() -> set[str]:
    """Return the metrics in the first column of the table in docs/metrics.md."""
    rows = re.findall(r"^\| (`wgvsock_.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(wgvsock_\w+)`", row)}


def samples(status: Mapping[str, Any]) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return what prometheus-client's parser reads."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parser.text_string_to_metric_families(metrics(status)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.parametrize("status", [STATUS, ENCLAVE], ids=["relay", "enclave"])
def test_names_and_types_follow_the_conventions(status: Mapping[str, Any]) -> None:
    families = list(parser.text_string_to_metric_families(metrics(status)))
    assert len(families) > 8
    for family in families:
        assert family.type in {"counter", "gauge"}, family
        assert family.documentation.endswith("."), family
        assert re.fullmatch(r"wgvsock_[a-z][a-z0-9_]*", family.name)
        names = {sample.name for sample in family.samples}
        assert names <= {f"{family.name}_total" if family.type == "counter" else family.name}
        bare = family.name.removeprefix("wgvsock_")
        assert family.type == "counter" or bare in NO_UNIT or bare.endswith(BASE_UNITS), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|percent|count)(_|$)", bare)


def test_the_parser_reads_what_the_snapshot_says() -> None:
    read = samples(STATUS)
    name = TUNNEL["name"]
    assert read["wgvsock_attestation_timestamp_seconds"] == [({"enclave": name}, 1767225600.0)]
    assert read["wgvsock_trusted_seconds"] == [({"enclave": name}, 61.5)]
    assert read["wgvsock_path_rtt_seconds"] == [
        ({"enclave": name, "stat": "last"}, 0.0015),
        ({"enclave": name, "stat": "p50"}, 0.002),
    ]
    assert read["wgvsock_provisioning_total"][1] == ({"enclave": name, "outcome": "rejected"}, 1)
    ((labels, one),) = read["wgvsock_build_info"]
    assert (set(labels), one) == ({"version", "commit", "build"}, 1)
    assert "wgvsock_attestation_timestamp_seconds" not in samples(
        {**STATUS, "enclaves": [{**TUNNEL, "attestation": None}]}
    )


@pytest.mark.parametrize("status", [STATUS, ENCLAVE], ids=["relay", "enclave"])
def test_every_metric_is_documented(status: Mapping[str, Any]) -> None:
    assert set(samples(status)) <= documented()


# -- rules -----------------------------------------------------------------------------------------------------------


def expressions() -> Iterator[tuple[str, str]]:
    """Return each query of the dashboard, as Grafana sends it."""
    variables = {"$__rate_interval": "1m", "$namespace": ".*", "$instance": ".*", "$enclave": ".*"}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            yield f"{panel['title']} {target['refId']}", query


def test_the_alert_rules_are_valid_and_tested() -> None:
    checked = promtool("check", "rules", "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "alerts.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    fire = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fire == {rule["alert"] for group in ALERTS for rule in group["rules"]}


def test_an_alert_that_never_fires_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text().replace("== 0", "== 7"))
    (tmp_path / "alerts.test.yml").write_text((MONITORING / "alerts.test.yml").read_text())
    assert promtool("test", "rules", tmp_path / "alerts.test.yml").returncode != 0


def test_the_dashboard_s_queries_can_be_parsed(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(expressions())]
    assert len(rules) > 15
    assert not [query for _, query in expressions() if "$" in query]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "queries.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    asked = [rule["expr"] for group in ALERTS for rule in group["rules"]] + [query for _, query in expressions()]
    names = {name for query in asked for name in re.findall(r"\bwgvsock_\w+", query)}
    assert names <= documented()
    assert set(samples(STATUS)) - names <= {
        "wgvsock_up",
        "wgvsock_dns_in_flight",
        "wgvsock_egress_pins",
        "wgvsock_egress_addresses_withheld_total",
        "wgvsock_uplink_resident_bytes",
    }  # and the other way round: each is shown or watched


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource", "namespace", "instance", "enclave",
    }  # fmt: skip


def test_the_alerts_tell_what_to_do() -> None:
    for group in ALERTS:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in {"critical", "warning"}
