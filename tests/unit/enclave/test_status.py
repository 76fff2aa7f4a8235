"""The agent's snapshot, as status and metrics show it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from wgvsock import settings
from wgvsock.egress.gate import GateSnapshot, Refused
from wgvsock.egress.settings import PolicySettings
from wgvsock.enclave.status import AgentSnapshot, EgressSnapshot, enclave_status
from wgvsock.provisioning import LinkState
from wgvsock.telemetry.reports import ApplicationState, Phase
from wgvsock.telemetry.status import metrics
from wgvsock.testing.provisioning import TUNNEL_CONFIG

SNAPSHOT = AgentSnapshot(
    name="app",
    pid=7,
    state=LinkState.ACTIVE,
    pinned=True,
    attempts={"ok": 1, "failed": 2},
    wireguard={"interface": "wg0", "public_key": "AAA=", "peers": []},
    counters={"dropped": {"no_route": 3}, "offloads": True},
    network=TUNNEL_CONFIG,
    application=ApplicationState(Phase.RUNNING, starts=2, code=3),
    clock_offset=-7.12499,
)


def test_everything_is_there() -> None:
    assert enclave_status(SNAPSHOT) == {
        "schema": "wgvsock/v1",
        "role": "enclave",
        "name": "app",
        "pid": 7,
        "state": "active",
        "ready": True,
        "provisioning": {"attempts": {"ok": 1, "failed": 2}},
        "pinned": True,
        "wireguard": {"interface": "wg0", "public_key": "AAA=", "peers": []},
        "network": {
            "addresses": [str(address) for address in TUNNEL_CONFIG.addresses],
            "routes": [str(network) for network in TUNNEL_CONFIG.allowed_ips],
            "mtu": TUNNEL_CONFIG.mtu,
            "dns": [str(server) for server in TUNNEL_CONFIG.nameservers],
        },
        "application": {
            "phase": "running",
            "running": True,
            "starts": 2,
            "exit_status": 3,
            "ready": None,
            "why": "",
        },
        "clock_offset_seconds": -7.125,
        "egress": None,
        "counters": {"dropped": {"no_route": 3}, "offloads": True},
    }


def test_without_a_relay_and_without_an_application() -> None:
    status = enclave_status(replace(SNAPSHOT, state=LinkState.UNPROVISIONED, network=None, application=None))
    assert (status["ready"], status["network"], status["application"]) == (False, None, None)


def test_an_application_that_has_ended() -> None:
    ended = ApplicationState(Phase.ENDED, starts=1, signal=9)
    status = enclave_status(replace(SNAPSHOT, application=ended))["application"]
    assert (status["phase"], status["running"], status["exit_status"]) == ("ended", False, 137)


def with_egress() -> AgentSnapshot:
    policy = settings.parse(
        PolicySettings, 'default = "deny"\nallow = [{network = "10.0.0.0/8"}]\ndeny = [{network = "10.9.0.0/16"}]'
    ).policy()
    refused = (
        Refused(ip_address("203.0.113.7"), 6, 443, "default", 3, 97.5),
        Refused(ip_address("2001:db8::7"), 58, 128, "default", 1, 90.0),
        Refused(ip_address("10.9.0.1"), 47, 0, "protocol", 1, 80.0),
    )
    gate = GateSnapshot({}, {"default": 4, "protocol": 1}, refused, incoming=2)
    return replace(SNAPSHOT, egress=EgressSnapshot(policy, gate, now=100.0))


def test_a_policy_of_its_own_and_what_it_refused() -> None:
    egress = enclave_status(with_egress())["egress"]
    assert egress == {
        "default": "deny",
        "rules": {"deny 1": "deny any to 10.9.0.0/16", "allow 1": "allow tcp to 10.0.0.0/8"},
        "denied": {"default": 4, "protocol": 1},
        "refused": [
            {
                "destination": "203.0.113.7",
                "protocol": "tcp",
                "port": 443,
                "by": "default",
                "count": 3,
                "last_seconds": 2.5,
            },
            {
                "destination": "2001:db8::7",
                "protocol": "icmp",
                "port": None,
                "by": "default",
                "count": 1,
                "last_seconds": 10.0,
            },
            {
                "destination": "10.9.0.1",
                "protocol": "47",
                "port": None,
                "by": "protocol",
                "count": 1,
                "last_seconds": 20.0,
            },
        ],
        "incoming_flows": 2,
    }


def test_denials_are_metrics_by_what_denied() -> None:
    text = metrics(enclave_status(with_egress()))
    assert 'wgvsock_egress_denied_total{by="default"} 4' in text
    assert 'wgvsock_egress_denied_total{by="protocol"} 1' in text
    assert "wgvsock_egress_denied_total{" not in metrics(enclave_status(SNAPSHOT))


def test_a_snapshot_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SNAPSHOT.name = "other"  # type: ignore[misc]


def test_the_metrics_are_made_from_it() -> None:
    text = metrics(enclave_status(SNAPSHOT))
    assert 'wgvsock_ready{role="enclave"} 1' in text
    assert 'wgvsock_dropped_total{reason="no_route"} 3' in text
    assert "wgvsock_clock_offset_seconds{} -7.125" in text
    assert "clock_offset" not in metrics(enclave_status(replace(SNAPSHOT, clock_offset=None)))
