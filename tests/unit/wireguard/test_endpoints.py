from __future__ import annotations

from dataclasses import dataclass

from wgvsock.addresses import Address, parse_address
from wgvsock.wireguard.endpoints import cookie_source, is_connected, is_stranger, rate_limit_source, without_source


@dataclass(frozen=True)
class FakeLink:
    address: Address


@dataclass(frozen=True)
class FakeStream(FakeLink):
    stream: int
    trusted: bool = False


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


def test_a_stream_has_a_limit_of_its_own() -> None:
    """An enclave's relay and its neighbours share one CID. On a Unix socket they share one address."""
    address = parse_address("vsock:3:1024")
    first, second = FakeStream(address, 1), FakeStream(address, 2)
    assert rate_limit_source(first) != rate_limit_source(second)
    assert rate_limit_source(first) == rate_limit_source(FakeStream(address, 1, trusted=True))
    assert rate_limit_source(FakeStream(address, 3)) != rate_limit_source(address)


def test_who_is_a_stranger() -> None:
    address = parse_address("vsock:3:1024")
    assert is_stranger(FakeStream(address, 1))
    assert not is_stranger(FakeStream(address, 1, trusted=True))
    for unconnected in (address, FakeLink(address), "alice"):
        assert not is_connected(unconnected)
        assert not is_stranger(unconnected)


def test_what_is_no_address_stands_for_itself() -> None:
    assert limit("unix:/a") == parse_address("unix:/a")
    assert rate_limit_source("alice") == "alice"
    assert cookie_source("alice") != cookie_source("bob")


def test_an_endpoint_that_knows_no_source_stays_as_it_is() -> None:
    class Sticky:
        def without_source(self) -> str:
            return "anywhere"

    assert without_source(None) is None
    assert without_source("host") == "host"
    assert without_source(Sticky()) == "anywhere"
