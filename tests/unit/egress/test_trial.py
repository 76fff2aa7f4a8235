"""What would happen, predicted."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import egress_cases
from tests.egress_cases import CASES, SITE, Case
from wgvsock.egress.names import Pins
from wgvsock.egress.settings import PolicySettings
from wgvsock.egress.trial import Destination, Outcome, outcomes, parse_destination
from wgvsock.egress.verdict import judge
from wgvsock.errors import ConfigurationError
from wgvsock.settings import parse


@pytest.mark.parametrize(
    ("text", "protocol", "host", "port"),
    [
        ("www.Lab.test.:443", "tcp", "www.lab.test", 443),
        ("192.0.2.1:53", "udp", ip_address("192.0.2.1"), 53),
        ("[2001:db8::1]:443", "tcp", ip_address("2001:db8::1"), 443),
        ("www.lab.test", "icmp", "www.lab.test", 0),
        ("192.0.2.1", "icmp", ip_address("192.0.2.1"), 0),
        ("2001:db8::1", "icmp", ip_address("2001:db8::1"), 0),
        ("[2001:db8::1]", "icmp", ip_address("2001:db8::1"), 0),
    ],
)
def test_destinations(text: str, protocol: str, host: object, port: int) -> None:
    found = parse_destination(text, protocol)
    assert (found.host, found.protocol, found.port) == (host, protocol, port)
    assert parse_destination(str(found), protocol) == found


@pytest.mark.parametrize(
    ("text", "protocol", "why"),
    [
        ("www.lab.test", "tcp", "the port"),
        ("www.lab.test:", "tcp", "the port"),
        ("www.lab.test:0", "tcp", "the port"),
        ("www.lab.test:65536", "udp", "the port"),
        ("www.lab.test:\u0663", "tcp", "the port"),
        ("2001:db8::1:443", "tcp", "square brackets enclose"),
        ("[192.0.2.1]:443", "tcp", "square brackets enclose"),
        ("*.lab.test:443", "tcp", "a pattern"),
        ("w w:443", "tcp", "labels have"),
        (":443", "tcp", "labels have"),
        ("www.lab.test:443", "sctp", "the protocol is one of tcp, udp, icmp"),
    ],
)
def test_what_is_no_destination(text: str, protocol: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_destination(text, protocol)
    assert why in refused.value.why


@given(st.text(max_size=40), st.sampled_from(["tcp", "udp", "icmp"]))
def test_any_text_is_a_destination_or_an_error(text: str, protocol: str) -> None:
    try:
        found = parse_destination(text, protocol)
    except ConfigurationError:
        return
    assert parse_destination(str(found), protocol) == found


@pytest.mark.parametrize("case", [case for case in CASES if case.packet.kind is not None], ids=str)
def test_an_address_is_judged_as_its_first_packet_is(case: Case) -> None:
    packet = case.packet
    assert packet.kind is not None
    destination = Destination(packet.destination, packet.kind, 0 if packet.kind == "icmp" else packet.port)
    policy, pins = egress_cases.policy(case.policy), egress_cases.pins(0)
    (found,) = outcomes(policy, pins, SITE, destination, 1)
    assert found == Outcome(case.allowed, str(judge(policy, pins, packet, SITE, 1)))


def told(text: str, *, rules: str = egress_cases.POLICIES["names"], protocol: str = "tcp", pinned: bool = True) -> str:
    """Return each outcome as a line."""
    policy = parse(PolicySettings, rules).policy()
    pins = egress_cases.pins(0) if pinned else Pins()
    found = outcomes(policy, pins, SITE, parse_destination(text, protocol), 1)
    return "\n".join(
        f"{each.address or '-'} {each.why}" + "".join(f" unless {rule.key}" for rule in each.unless) for each in found
    )


def test_a_name_is_judged_by_each_address_that_it_has() -> None:
    assert told("a.example.com:22") == (
        '203.0.113.20 allowed by rule "allow any to *.example.com"\n'
        '203.0.113.70 denied by rule "deny any to 203.0.113.64/26"'
    )
    assert told("www.lab.test:80") == "203.0.113.10 denied by default\n2001:db8:9::10 denied by default"


def test_a_name_that_may_not_be_asked_for() -> None:
    for name in ("elsewhere.test", "admin.example.com", "example.com"):
        assert told(f"{name}:443") == "- denied as a name that no rule lets the enclave resolve"


def test_a_name_without_an_address_is_judged_as_far_as_it_goes() -> None:
    assert told("b.example.com:22") == '- allowed by rule "allow any to *.example.com" unless deny 2'
    assert told("b.example.com", protocol="icmp") == '- allowed by rule "allow any to *.example.com" unless deny 2'
    assert told("www.lab.test:80", pinned=False) == "- denied by default"
    networks = egress_cases.POLICIES["networks"]
    assert told("www.lab.test:443", rules=networks, pinned=False) == "- denied by default unless allow 1 unless allow 4"
    assert told("www.lab.test:443", rules="", pinned=False) == "- allowed by default"
    exceptions = egress_cases.POLICIES["exceptions"]
    assert told("www.lab.test:25", rules=exceptions, pinned=False) == "- allowed by default unless deny 1 unless deny 2"


def test_as_json() -> None:
    policy = egress_cases.policy("names")
    (found,) = outcomes(policy, Pins(), SITE, parse_destination("b.example.com:22", "tcp"), 0)
    assert found.plain() == {
        "allowed": True,
        "why": 'allowed by rule "allow any to *.example.com"',
        "address": None,
        "unless": ["deny any to 203.0.113.64/26"],
    }
    (found, _) = outcomes(policy, egress_cases.pins(0), SITE, parse_destination("www.lab.test:443", "tcp"), 1)
    assert (found.plain()["address"], found.plain()["unless"]) == ("203.0.113.10", [])
