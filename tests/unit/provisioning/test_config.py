from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.errors import ConfigRejectedError
from wgvsock.provisioning.messages import ConfigFields
from wgvsock.testing.provisioning import TUNNEL_CONFIG

FIELDS = TUNNEL_CONFIG.to_fields()


def _fields(**changes: Any) -> ConfigFields:
    return replace(FIELDS, **changes)


ACCEPTED: dict[str, dict[str, Any]] = {
    "the usual": {},
    "IPv4 alone": {"addresses": ("10.73.0.2/24",), "gateways": ("10.73.0.1",), "allowed_ips": ("0.0.0.0/0",)},
    "IPv6 alone": {"addresses": ("fd73::2/64",), "gateways": ("fd73::1",), "allowed_ips": ("::/0",)},
    "point to point": {"addresses": ("192.168.7.1/31",), "gateways": ("192.168.7.0",)},
    "four addresses": {"addresses": ("10.73.0.2/24", "10.73.0.3/24", "10.74.0.2/24", "fd73::2/64")},
    "smallest MTU": {"mtu": 1280},
    "largest MTU": {"mtu": 65_535},
    "split routes": {"allowed_ips": ("10.0.0.0/8", "172.16.0.0/12", "fd00::/8")},
    "link-local route": {"allowed_ips": ("169.254.169.254/32", "0.0.0.0/0")},
    "node-local name server": {"nameservers": ("169.254.20.10", "fd00:ec2::253")},
    "no resolver settings": {"nameservers": (), "search": (), "resolver_options": ()},
    "search domains": {"search": ("ns.svc.cluster.local", "svc.cluster.local", "xn--bcher-kva.example", "a", "1.2")},
    "search underscore": {"search": ("_tcp.example", "team_a.example.com", "a_")},
    "long label": {"search": ("a" * 63,)},
    "long name": {"search": (".".join(["a" * 62] * 4)[:253],)},
    "256 bytes of search domains": {"search": (".".join(["a" * 62] * 4)[:251], "b" * 4)},
    "numbers": {"resolver_options": ("ndots:0", "ndots:15", "timeout:30", "attempts:5")},
    "flags": {"resolver_options": ("rotate", "edns0", "use-vc", "single-request-reopen", "no-aaaa")},
    "keepalive": {"persistent_keepalive": 65_535},
}

REJECTED: dict[str, dict[str, Any]] = {
    # Texts.
    "address without prefix": {"addresses": ("10.73.0.2",)},
    "address with netmask": {"addresses": ("10.73.0.2/255.255.255.0",)},
    "address with space": {"addresses": (" 10.73.0.2/24",)},
    "address with newline": {"addresses": ("10.73.0.2/24\n",)},
    "address with leading zero": {"addresses": ("10.73.0.02/24",)},
    "address with long prefix": {"addresses": ("10.73.0.2/33",)},
    "address not canonical": {"addresses": ("fd73:0::2/64",)},
    "address in capitals": {"addresses": ("FD73::2/64",)},
    "gateway with prefix": {"gateways": ("10.73.0.1/24",)},
    "gateway a name": {"gateways": ("relay",)},
    "gateway with zone": {"gateways": ("fd73::1%eth0",)},
    "route with host bits": {"allowed_ips": ("10.73.0.1/24",)},
    "route without prefix": {"allowed_ips": ("10.73.0.0",)},
    "name server a name": {"nameservers": ("dns",)},
    "name server with option": {"nameservers": ("10.0.0.1 options debug",)},
    # Addresses.
    "loopback": {"addresses": ("127.0.0.1/32",)},
    "loopback 6": {"addresses": ("::1/128",)},
    "multicast": {"addresses": ("224.0.0.1/32",)},
    "multicast 6": {"addresses": ("ff02::1/128",)},
    "link-local": {"addresses": ("169.254.1.1/32",)},
    "link-local 6": {"addresses": ("fe80::1/64",)},
    "unspecified": {"addresses": ("0.0.0.0/32",)},
    "unspecified 6": {"addresses": ("::/128",)},
    "reserved": {"addresses": ("240.0.0.1/32",)},
    "limited broadcast": {"addresses": ("255.255.255.255/32",)},
    "IPv4-mapped": {"addresses": ("::ffff:10.73.0.2/128",)},
    "scoped": {"addresses": ("fd73::2%1/64",)},
    "network address": {"addresses": ("10.73.0.0/24",)},
    "broadcast address": {"addresses": ("10.73.0.255/24",)},
    "prefix 0": {"addresses": ("10.73.0.2/0",)},
    "prefix over loopback": {"addresses": ("10.73.0.2/1",)},
    "prefix 6 over loopback": {"addresses": ("fd73::2/0",)},
    "address twice": {"addresses": ("10.73.0.2/24", "10.73.0.2/16", "fd73::2/64")},
    # Gateways.
    "gateway outside": {"gateways": ("10.74.0.1",)},
    "gateway outside 6": {"gateways": ("fd74::1",)},
    "gateway of a family without address": {"addresses": ("10.73.0.2/24",), "gateways": ("fd73::1",)},
    "gateway is our own": {"gateways": ("10.73.0.2",)},
    "gateway is another of our own": {
        "addresses": ("10.73.0.2/24", "10.73.0.3/24", "fd73::2/64"),
        "gateways": ("10.73.0.3",),
    },
    "gateway is the network": {"gateways": ("10.73.0.0",)},
    "gateway is the broadcast": {"gateways": ("10.73.0.255",)},
    "two gateways of a family": {"gateways": ("10.73.0.1", "10.73.0.9")},
    # Routes.
    "route over loopback": {"allowed_ips": ("127.0.0.0/8",)},
    "route inside loopback": {"allowed_ips": ("127.0.0.53/32",)},
    "route around loopback": {"allowed_ips": ("126.0.0.0/7",)},
    "half of all": {"allowed_ips": ("0.0.0.0/1",)},
    "route to loopback 6": {"allowed_ips": ("::1/128",)},
    "route around loopback 6": {"allowed_ips": ("::/64",)},
    "route twice": {"allowed_ips": ("0.0.0.0/0", "0.0.0.0/0")},
    # Resolver.
    "name server loopback": {"nameservers": ("127.0.0.53",)},
    "name server unspecified": {"nameservers": ("0.0.0.0",)},  # noqa: S104 - it is what has to be refused
    "name server multicast": {"nameservers": ("224.0.0.251",)},
    "name server link-local 6": {"nameservers": ("fe80::53",)},
    "search empty label": {"search": ("a..b",)},
    "search trailing dot": {"search": ("example.com.",)},
    "search dot": {"search": (".",)},
    "search hyphen first": {"search": ("-a.example",)},
    "search hyphen last": {"search": ("a-.example",)},
    "search space": {"search": ("a b",)},
    "search newline": {"search": ("a\nnameserver 6.6.6.6",)},
    "search newline at the end": {"search": ("a\n",)},
    "search label of 64": {"search": ("a" * 64,)},
    "search name of 254": {"search": ("a" * 62 + "." + ".".join(["a" * 62] * 3) + ".aa",)},
    "search 257 bytes": {"search": (".".join(["a" * 62] * 4)[:251], "b" * 5)},
    "option unknown": {"resolver_options": ("debug",)},
    "option trust-ad": {"resolver_options": ("trust-ad",)},
    "option number missing": {"resolver_options": ("ndots:",)},
    "option number high": {"resolver_options": ("ndots:16",)},
    "option number sign": {"resolver_options": ("ndots:+5",)},
    "option number zero": {"resolver_options": ("attempts:0",)},
    "option newline": {"resolver_options": ("ndots:5\n",)},
    "option two words": {"resolver_options": ("rotate use-vc",)},
    "option flag with number": {"resolver_options": ("rotate:1",)},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(changes: dict[str, Any]) -> None:
    fields = _fields(**changes)
    assert TunnelConfig.from_fields(fields).to_fields() == fields


@pytest.mark.parametrize("changes", REJECTED.values(), ids=REJECTED)
def test_rejected_without_an_echo(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigRejectedError) as caught:
        TunnelConfig.from_fields(_fields(**changes))
    why = caught.value.why
    assert 0 < len(why) <= 128  # it fits the detail of an ERROR
    for values in changes.values():
        assert not any(len(value) > 3 and value in why for value in values)


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ()},
        {"gateways": ()},
        {"allowed_ips": ()},
        {"addresses": tuple(ip_interface(f"10.73.0.{i}/24") for i in range(2, 7))},
        {"allowed_ips": tuple(ip_network(f"10.{i}.0.0/16") for i in range(17))},
        {"nameservers": tuple(ip_address(f"10.96.0.{i}") for i in range(1, 5))},
        {"search": tuple("abcdefg")},
        {"resolver_options": ("rotate",) * 9},
        {"mtu": 1279},
        {"mtu": 65_536},
        {"persistent_keepalive": -1},
        {"persistent_keepalive": 65_536},
    ],
    ids=str,
)
def test_the_relay_holds_its_own_configuration_to_the_counts_and_ranges(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigRejectedError):
        replace(TUNNEL_CONFIG, **changes).validate()


@given(search=st.lists(st.text(max_size=80), max_size=6), options=st.lists(st.text(max_size=20), max_size=8))
def test_whatever_passes_adds_no_line_and_no_word_to_resolv_conf(search: list[str], options: list[str]) -> None:
    try:
        config = TunnelConfig.from_fields(_fields(search=tuple(search), resolver_options=tuple(options)))
    except ConfigRejectedError:
        return
    line = " ".join((*config.search, *config.resolver_options))
    assert line.isascii()
    assert line.split() == [*search, *options]
    assert len(line.splitlines()) <= 1
