from __future__ import annotations

from dataclasses import dataclass

from wgvsock.addresses import Address, parse_address
from wgvsock.wireguard.endpoints import cookie_source, rate_limit_source


@dataclass(frozen=True)
class FakeLink:
    address: Address


def limit(text: str) -> object:
    return rate_limit_source(parse_address(text))


def test_a_cookie_is_bound_to_address_and_port() -> None:
    first, other_port = parse_address("udp:192.0.2.1:51820"), parse_address("udp:192.0.2.1:51821")
    assert cookie_source(first) == cookie_source(parse_address("udp:192.0.2.1:51820"))
    assert cookie_source(first) != cookie_source(other_port)
    assert cookie_source(first) != cookie_source(parse_address("tcp:192.0.2.1:51820"))


def test_a_link_counts_as_its_address() -> None:
    address = parse_address("vsock:16:51820")
    assert cookie_source(FakeLink(address)) == cookie_source(address)
    assert rate_limit_source(FakeLink(address)) == rate_limit_source(address)


def test_a_host_s_ports_share_a_limit() -> None:
    assert limit("udp:192.0.2.1:1") == limit("udp:192.0.2.1:2")
    assert limit("udp:192.0.2.1:1") != limit("udp:192.0.2.2:1")
    assert limit("vsock:16:1") == limit("vsock:16:2")
    assert limit("vsock:16:1") != limit("vsock:17:1")


def test_an_ipv6_site_shares_a_limit() -> None:
    assert limit("tcp:[2001:db8::1]:1") == limit("tcp:[2001:db8::ffff]:1")
    assert limit("tcp:[2001:db8::1]:1") != limit("tcp:[2001:db8:0:1::1]:1")


def test_what_is_no_address_stands_for_itself() -> None:
    assert limit("unix:/a") == parse_address("unix:/a")
    assert rate_limit_source("alice") == "alice"
    assert cookie_source("alice") != cookie_source("bob")
