"""The messages between relay and engine."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from wgvsock.errors import RemoteProtocolError
from wgvsock.uplink.orders import Begin, End, Port, Publish, Report, decode_order, decode_report, network_of_relay

BEGIN = Begin(
    addresses=(ip_address("10.73.0.2"), ip_address("fd73::2")),
    gateways=(ip_address("10.73.0.1"), ip_address("fd73::1")),
    max_connections=4096,
    dns_port=40053,
    reports="/run/wgvsock/relay.agent.sock",
    report_port=51822,
)
REPORT = Report("4.7.0", 3, 2, 1, 1 << 24, 2, 4, 1, {"tcp:80->10.73.0.2:80": 13}, ("seccomp",))


def test_orders_arrive_as_they_were_given() -> None:
    ports = Publish((Port("tcp", 443, ip_address("fd73::2"), 8443), Port("udp", 53, ip_address("10.73.0.2"), 53)))
    assert decode_order(End().encode()) == End()
    assert decode_order(BEGIN.encode()) == BEGIN
    assert decode_order(ports.encode()) == ports
    assert decode_order(Publish(draining=True).encode()) == Publish(draining=True)
    assert str(ports.ports[0]) == "tcp:443->fd73::2:8443"


@pytest.mark.parametrize("message", [b"", b"[]", b"{}", b"no json", b'{"begin": {"addresses": ["x"]}}', b"[" * 60_000])
def test_what_is_no_order_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_order(message)


def test_a_report_arrives_as_it_was_made() -> None:
    assert decode_report(REPORT.encode()) == REPORT


@pytest.mark.parametrize(
    "changed",
    [
        {"connections": -1},
        {"connections": True},
        {"connections": 1.5},
        {"resident": 1 << 63},
        {"version": None},
        {"version": "x" * 201},
        {"version": "\x1b[31m"},
        {"failed": []},
        {"failed": {"tcp": "13"}},
        {"failed": {"\x07": 13}},
        {"sandbox": "all"},
        {"sandbox": [1]},
    ],
)
def test_a_report_of_another_form_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_report(json.dumps(json.loads(REPORT.encode()) | changed).encode())


@pytest.mark.parametrize("message", [b"", b"[1]", b"\xff", b"[" * 60_000])
def test_what_is_no_report_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_report(message)


@pytest.mark.parametrize(
    ("gateway", "network"),
    [
        ("10.73.0.1", "10.73.0.0/30"),
        ("198.18.73.2", "198.18.73.0/30"),
        ("198.18.73.4", "198.18.73.4/30"),
        ("10.0.0.3", "10.0.0.0/29"),
        ("10.0.0.7", "10.0.0.0/28"),
        ("10.0.0.255", "10.0.0.0/23"),
    ],
)
def test_the_gateway_is_not_the_last_address_of_its_network(gateway: str, network: str) -> None:
    assert str(network_of_relay(IPv4Address(gateway))) == network


def test_a_long_list_of_what_is_missing_is_cut() -> None:
    many = json.loads(REPORT.encode()) | {"sandbox": ["x"] * 100}
    assert len(decode_report(json.dumps(many).encode()).sandbox) == 16
