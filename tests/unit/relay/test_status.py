"""The view of snapshots in probes, status and metrics."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_address

import pytest

from wgvsock.dns.snapshot import ForwarderSnapshot
from wgvsock.egress.trial import Outcome
from wgvsock.errors import ConfigurationError
from wgvsock.relay.enclaves.application import ApplicationSnapshot, Line
from wgvsock.relay.enclaves.ping import Ping
from wgvsock.relay.enclaves.processor import ProcessorSnapshot
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.snapshots import EnclaveSnapshot, Readiness, RelaySnapshot, State
from wgvsock.relay.status import (
    MAX_LISTED,
    egress_answer,
    lines_answer,
    live_answer,
    name_refusal,
    ping_answer,
    ready_answer,
    relay_status,
    signal_answer,
    trial_answer,
    trial_refusal,
)
from wgvsock.relay.uplink.base import (
    DeniedDestination,
    EgressSnapshot,
    EngineSnapshot,
    RefusedName,
    RuleCount,
    UplinkSnapshot,
)
from wgvsock.system.processor import ProcessorTimes
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.telemetry.status import metrics
from wgvsock.tunnel.probe import PathSnapshot

READY = Readiness(attested=True, handshake=True, rules=True)
ENCLAVE = EnclaveSnapshot(
    name="wallet",
    state=State.READY,
    readiness=READY,
    address="vsock:16:51820",
    launched=None,
    attestation=None,
    root_is_aws=True,
    debug_allowed=False,
    attempts={"ok": 3, "failed": 1, "rejected": 0},
    next_attestation=12.34,
    trusted_for=56.78,
    error=None,
    wireguard=None,
    counters=None,
    uplink=None,
)


def relay(*enclaves: EnclaveSnapshot) -> RelaySnapshot:
    return RelaySnapshot("relay", 7, State.READY, enclaves)


@pytest.mark.parametrize("conditions", list(itertools.product([False, True], repeat=4)))
def test_all_conditions_of_all_enclaves_have_to_hold(conditions: tuple[bool, bool, bool, bool]) -> None:
    readiness = Readiness(*conditions)
    assert readiness.ready == all(conditions)
    answer = ready_answer(relay(ENCLAVE, replace(ENCLAVE, name="other", readiness=readiness)))
    assert answer.status == (HTTPStatus.OK if all(conditions) else HTTPStatus.SERVICE_UNAVAILABLE)
    body = json.loads(answer.body)
    assert body["schema"] == "wgvsock/v1"
    assert tuple(body["enclaves"]["other"].values()) == (*conditions, None, None)
    assert all(holds for name, holds in body["enclaves"]["wallet"].items() if name not in {"path", "application"})


@pytest.mark.parametrize(("application", "ready"), [(True, True), (None, True), (False, False)])
def test_an_application_that_says_it_is_not_ready_ends_readiness(application: bool | None, ready: bool) -> None:
    answer = ready_answer(relay(replace(ENCLAVE, readiness=replace(READY, application=application))))
    assert answer.status == (HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
    assert json.loads(answer.body)["enclaves"]["wallet"]["application"] is application


def test_the_processor_use_in_status_and_metrics() -> None:
    times = ProcessorTimes(clock_ms=905_001, busy_ms=7_500, own_ms=1_250, processors=2)
    known = replace(ENCLAVE, processor=ProcessorSnapshot(times, 37.25, None))
    status = relay_status(relay(known, replace(ENCLAVE, name="other")))
    assert [enclave["processor"] for enclave in status["enclaves"]] == [
        {
            "processors": 2,
            "clock_seconds": 905.001,
            "busy_seconds": 7.5,
            "agent_seconds": 1.25,
            "percent": 37.2,
            "agent_percent": None,
        },
        None,
    ]
    samples = [line for line in metrics(status).splitlines() if "processor" in line and not line.startswith("#")]
    assert samples == [
        f"wgvsock_processor_seconds_total {status['processor_seconds']:.15g}",
        'wgvsock_enclave_processors{enclave="wallet"} 2',
        'wgvsock_enclave_processor_seconds_total{enclave="wallet"} 7.5',
        'wgvsock_enclave_agent_processor_seconds_total{enclave="wallet"} 1.25',
    ]


def test_the_application_in_status_and_metrics() -> None:
    state = ApplicationState(Phase.RUNNING, starts=3, signal=9, ready=True, probed=True)
    known = replace(
        ENCLAVE, application=ApplicationSnapshot(state, connected=True, lost_lines=5, lost_bytes=100), clock_offset=7.5
    )
    status = relay_status(relay(known, replace(ENCLAVE, name="other")))
    assert [enclave["application"] for enclave in status["enclaves"]] == [
        {
            "phase": "running",
            "running": True,
            "starts": 3,
            "exit_status": 137,
            "ready": True,
            "why": "",
            "reports": True,
            "lost_lines": 5,
            "lost_bytes": 100,
        },
        None,
    ]
    assert [enclave["clock_offset_seconds"] for enclave in status["enclaves"]] == [7.5, None]
    assert 'wgvsock_clock_offset_seconds{enclave="wallet"} 7.5' in metrics(status)
    samples = [line for line in metrics(status).splitlines() if line.startswith("wgvsock_application")]
    assert samples == [
        'wgvsock_application_running{enclave="wallet"} 1',
        'wgvsock_application_ready{enclave="wallet"} 1',
        'wgvsock_application_exit_status{enclave="wallet"} 137',
        'wgvsock_application_starts_total{enclave="wallet"} 3',
        'wgvsock_application_lost_lines_total{enclave="wallet"} 5',
        'wgvsock_application_lost_bytes_total{enclave="wallet"} 100',
    ]


def test_lines_and_signals() -> None:
    answer = lines_answer("wallet", [Line(5, 7, "stdout", "hello")], 5)
    assert json.loads(answer.body) == {
        "schema": "wgvsock/v1",
        "enclave": "wallet",
        "lines": [{"number": 5, "time_ms": 7, "stream": "stdout", "text": "hello"}],
        "last": 5,
    }
    assert signal_answer(sent=True, why="").status is HTTPStatus.ACCEPTED
    refusal = signal_answer(sent=False, why="the image permits none")
    assert refusal.status is HTTPStatus.CONFLICT
    assert json.loads(refusal.body)["why"] == "the image permits none"


@pytest.mark.parametrize(("path", "ready"), [(True, True), (None, True), (False, False)])
def test_a_path_ends_readiness_only_when_it_is_known_to_be_dead(path: bool | None, ready: bool) -> None:
    answer = ready_answer(relay(replace(ENCLAVE, readiness=replace(READY, path=path))))
    assert answer.status == (HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
    assert json.loads(answer.body)["enclaves"]["wallet"]["path"] is path


def test_the_path_and_its_times() -> None:
    path = PathSnapshot(alive=True, last=0.0005, minimum=0.00025, median=0.0003, sent=12, lost=1)
    other = replace(ENCLAVE, name="other", path=PathSnapshot())
    status = relay_status(relay(replace(ENCLAVE, path=path), other, replace(ENCLAVE, name="starting")))
    wallet, unknown, starting = (enclave["path"] for enclave in status["enclaves"])
    assert wallet == {"alive": True, "rtt_ms": {"last": 0.5, "min": 0.25, "p50": 0.3}, "sent": 12, "lost": 1}
    assert unknown == {"alive": None, "rtt_ms": {"last": None, "min": None, "p50": None}, "sent": 0, "lost": 0}
    assert starting is None
    samples = [line for line in metrics(status).splitlines() if line.startswith("wgvsock_path")]
    assert samples == [
        'wgvsock_path_rtt_seconds{enclave="wallet",stat="last"} 0.0005',
        'wgvsock_path_rtt_seconds{enclave="wallet",stat="min"} 0.00025',
        'wgvsock_path_rtt_seconds{enclave="wallet",stat="p50"} 0.0003',
        'wgvsock_path_sent_total{enclave="wallet"} 12',
        'wgvsock_path_sent_total{enclave="other"} 0',
        'wgvsock_path_lost_total{enclave="wallet"} 1',
        'wgvsock_path_lost_total{enclave="other"} 0',
    ]


def test_what_ping_is_answered() -> None:
    ping = Ping(
        stream=True,
        stream_age=60.0004,
        connect=0.0004,
        handshake=True,
        handshake_age=41.0,
        handshake_took=0.002,
        destination="10.73.0.2",
        echo=0.0005,
        alive=True,
    )
    assert json.loads(ping_answer("wallet", ping).body) == {
        "schema": "wgvsock/v1",
        "enclave": "wallet",
        "stream": {"ok": True, "connected_seconds": 60.0, "connect_ms": 0.4},
        "handshake": {"ok": True, "age_seconds": 41.0, "took_ms": 2.0},
        "ip": {"ok": True, "destination": "10.73.0.2", "rtt_ms": 0.5, "path": True},
    }
    silent = json.loads(ping_answer("wallet", replace(ping, echo=None, alive=None)).body)["ip"]
    assert silent == {"ok": False, "destination": "10.73.0.2", "rtt_ms": None, "path": None}


def test_ping_is_told_the_names_of_the_enclaves() -> None:
    answer = name_refusal(["wallet", "vault"])
    assert answer.status is HTTPStatus.NOT_FOUND
    assert json.loads(answer.body) == {"schema": "wgvsock/v1", "enclave": None, "enclaves": ["vault", "wallet"]}


def test_a_relay_without_enclaves_is_not_ready() -> None:
    assert not relay().ready


def test_alive() -> None:
    assert json.loads(live_answer().body)["live"] is True


def test_the_states_have_distinct_words() -> None:
    assert len({state.value for state in State}) == len(State) == 7


EGRESS = EgressSnapshot(
    default="deny",
    rules=(RuleCount("allow 1", "allow tcp 443 to www.lab.test", 7),),
    others={"default": 2},
    pins=(("www.lab.test", "203.0.113.10", 55.5004),),
    denied=(DeniedDestination("203.0.113.1", "tcp", 443, 2, 9.0, 1.0, "a.test", "denied by default"),),
    refused=(RefusedName("b.test", 3, 2.0, ("169.254.169.254",)),),
    names_refused=5,
    addresses_withheld=1,
)


def test_egress_is_told_of_all_enclaves_or_of_one() -> None:
    uplink = UplinkSnapshot(True, "r", "nft", "eth0", 1500, (), Counter(), Counter(), (), None, EGRESS)
    snapshot = relay(replace(ENCLAVE, uplink=uplink), replace(ENCLAVE, name="other", uplink=uplink))
    everything = json.loads(egress_answer(snapshot, "").body)
    assert [enclave["name"] for enclave in everything["enclaves"]] == ["wallet", "other"]
    (wallet,) = json.loads(egress_answer(snapshot, "wallet").body)["enclaves"]
    assert wallet["rules"] == [{"key": "allow 1", "rule": "allow tcp 443 to www.lab.test", "flows": 7}]
    assert wallet["pinned"] == [{"name": "www.lab.test", "address": "203.0.113.10", "seconds_left": 55.5}]
    (denied,), (refused,) = wallet["denied"], wallet["refused"]
    assert (denied["address"], denied["name"], denied["packets"], denied["by"]) == (
        *("203.0.113.1", "a.test", 2),
        "denied by default",
    )
    assert (refused["name"], refused["questions"], refused["withheld"]) == ("b.test", 3, ["169.254.169.254"])
    unknown = egress_answer(snapshot, "vault")
    assert unknown.status is HTTPStatus.NOT_FOUND
    assert json.loads(unknown.body)["enclaves"] == ["other", "wallet"]


def test_what_would_happen_is_told_by_enclave() -> None:
    outcome = Outcome(allowed=False, why="denied by default", address=ip_address("203.0.113.1"))
    answer = trial_answer({"wallet": [outcome], "other": []})
    assert answer.status is HTTPStatus.OK
    assert json.loads(answer.body)["outcomes"] == {"wallet": [outcome.plain()], "other": []}
    refused = trial_refusal(ConfigurationError("cannot read it", why="the port is missing", fix="write it"))
    assert refused.status is HTTPStatus.BAD_REQUEST
    assert json.loads(refused.body)["error"]["why"] == "the port is missing"


def test_lists_of_egress_are_bounded_in_an_answer() -> None:
    egress = replace(EGRESS, pins=EGRESS.pins * (MAX_LISTED + 1), denied=EGRESS.denied * (MAX_LISTED + 1))
    uplink = UplinkSnapshot(True, "r", "nft", "eth0", 1500, (), Counter(), Counter(), (), None, egress)
    (found,) = json.loads(egress_answer(relay(replace(ENCLAVE, uplink=uplink)), "").body)["enclaves"]
    assert (len(found["pinned"]), len(found["denied"]), found["pins"]) == (MAX_LISTED, MAX_LISTED, MAX_LISTED + 1)
    both = relay(replace(ENCLAVE, uplink=uplink), replace(ENCLAVE, name="other", uplink=uplink))
    assert [len(one["denied"]) for one in json.loads(egress_answer(both, "").body)["enclaves"]] == [MAX_LISTED // 2] * 2


ENGINE = EngineSnapshot(True, 4711, "4.7.0", 1, 3, 4096, 2, 5, 6, 1 << 24, ())


def test_the_engine_of_a_user_space_uplink_is_told_and_counted() -> None:
    kernel = UplinkSnapshot(True, "r", "nft", "eth0", 1500, (), Counter(), Counter(), (), None, EGRESS)
    userspace = replace(kernel, backend="userspace", engine=ENGINE)
    status = relay_status(relay(replace(ENCLAVE, uplink=userspace), replace(ENCLAVE, name="other", uplink=kernel)))
    found, none = (enclave["nat"]["engine"] for enclave in status["enclaves"])
    assert none is None
    assert (found["pid"], found["restarts"], found["connections"], found["odd"]) == (4711, 1, 3, 6)
    samples = [line for line in metrics(status).splitlines() if line.startswith("wgvsock_uplink_")]
    assert samples == [
        'wgvsock_uplink_connections{enclave="wallet"} 3',
        'wgvsock_uplink_max_connections{enclave="wallet"} 4096',
        'wgvsock_uplink_crowded_total{enclave="wallet"} 2',
        'wgvsock_uplink_dropped_total{enclave="wallet"} 5',
        'wgvsock_uplink_odd_total{enclave="wallet"} 6',
        'wgvsock_uplink_restarts_total{enclave="wallet"} 1',
        'wgvsock_uplink_resident_bytes{enclave="wallet"} 16777216',
    ]


def test_each_enclave_has_its_section_and_its_label() -> None:
    uplink = UplinkSnapshot(
        is_open=True,
        owner="relay/wallet",
        backend="nft",
        interfaces="eth0",
        mtu=1500,
        published=("tcp:443->198.18.73.3:443",),
        repairs=Counter(rules=2),
        deleted_flows=Counter(early=3),
        contested=(),
        problem=UplinkError("no way", why="no route"),
        egress=EGRESS,
    )
    snapshot = relay(replace(ENCLAVE, uplink=uplink, replacement=ENCLAVE), replace(ENCLAVE, name="other"))
    status = relay_status(snapshot)
    wallet, other = status["enclaves"]
    assert (wallet["name"], wallet["provisioning"]["next_in_seconds"], wallet["nat"]["repairs"]) == (
        "wallet",
        12.3,
        {"rules": 2},
    )
    assert wallet["nat"]["problem"] == {"code": "WGV-E082", "what": "no way", "why": "no route", "fix": ""}
    assert (wallet["replacement"]["name"], other["nat"], other["replacement"]) == ("wallet", None, None)
    assert wallet["egress"] == {
        "default": "deny",
        "flows": {"allow 1": 7, "default": 2},
        "pins": 1,
        "names_refused": 5,
        "addresses_withheld": 1,
    }
    assert other["egress"] is None
    text = metrics(status)
    assert 'wgvsock_egress_flows_total{enclave="wallet",rule="allow 1"} 7' in text
    assert 'wgvsock_egress_flows_total{enclave="wallet",rule="default deny"} 2' in text
    assert 'wgvsock_egress_pins{enclave="wallet"} 1' in text
    assert 'wgvsock_egress_names_refused_total{enclave="wallet"} 5' in text
    assert 'wgvsock_egress_addresses_withheld_total{enclave="wallet"} 1' in text
    assert 'wgvsock_provisioning_total{enclave="wallet",outcome="ok"} 3' in text
    assert 'wgvsock_repairs_total{enclave="wallet",kind="rules"} 2' in text
    assert 'wgvsock_flows_deleted_total{enclave="wallet",kind="early"} 3' in text
    assert 'wgvsock_enclave_ready{enclave="other",state="ready"} 1' in text
    assert 'wgvsock_ready{role="relay"} 1' in text


def test_what_the_forwarder_does() -> None:
    forwarder = ForwarderSnapshot(
        listen=(ip_address("10.73.0.1"),),
        servers=(ip_address("10.96.0.10"), ip_address("10.96.0.11")),
        silent=(ip_address("10.96.0.10"),),
        in_flight=3,
        queries={"answered": 40, "refused_name": 2},
        upstream={"timeouts": 1},
    )
    status = relay_status(relay(replace(ENCLAVE, dns=forwarder), replace(ENCLAVE, name="other")))
    assert [enclave["dns"] for enclave in status["enclaves"]] == [
        {
            "listen": ["10.73.0.1"],
            "servers": ["10.96.0.10", "10.96.0.11"],
            "silent": ["10.96.0.10"],
            "in_flight": 3,
            "queries": {"answered": 40, "refused_name": 2},
            "upstream": {"timeouts": 1},
        },
        None,
    ]
    assert [line for line in metrics(status).splitlines() if line.startswith("wgvsock_dns")] == [
        'wgvsock_dns_queries_total{enclave="wallet",outcome="answered"} 40',
        'wgvsock_dns_queries_total{enclave="wallet",outcome="refused_name"} 2',
        'wgvsock_dns_upstream_total{enclave="wallet",kind="timeouts"} 1',
        'wgvsock_dns_in_flight{enclave="wallet"} 3',
    ]
