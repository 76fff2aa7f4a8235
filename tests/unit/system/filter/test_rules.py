"""How rules describe themselves."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from wgvsock.system.facts import Fact
from wgvsock.system.filter.rules import PublishedPort, Ruleset, facts_in, published_in

FACTS = (Fact("ipv4_forwarding", "eth0", "0/1"), Fact("sysctl", "/proc/sys/net/ipv6/conf/all/forwarding", "0"))


def test_facts_survive_a_listing() -> None:
    nft = "".join(f'\t\tcounter packets 0 bytes 0 comment "{fact}"\n' for fact in FACTS)
    iptables = "".join(f'-A WGVSOCK-relay-LAST -m comment --comment "{fact}"\n' for fact in FACTS)
    assert facts_in(nft) == facts_in(iptables) == FACTS


def test_other_comments_are_no_facts() -> None:
    assert facts_in('counter comment "before lunch"\ncounter comment "after ipv4_forwarding eth0 0"') == ()


def test_a_ruleset_s_families_and_ways_out() -> None:
    rules = Ruleset("relay", "wg0", ((4, "eth0"),), (ip_network("fd73::/64"), ip_network("10.73.0.0/24")))
    assert rules.versions == (4, 6)
    assert (rules.uplink(4), rules.uplink(6)) == ("eth0", None)


@pytest.mark.parametrize("destination", ["10.73.0.2", "fd73::2"])
def test_a_published_port_is_remembered(destination: str) -> None:
    port = PublishedPort("udp", 53, ip_address(destination), 5353)
    assert list(published_in(facts_in(f'counter comment "{port.fact()}"'))) == [port]


@pytest.mark.parametrize(
    "fact",
    [
        Fact("sysctl", "udp/53", "10.73.0.2/5353"),
        Fact("published", "sctp/53", "10.73.0.2/5353"),
        Fact("published", "udp/53", "10.73.0.999/5353"),
        Fact("published", "udp/53", "10.73.0.2"),
    ],
)
def test_what_is_no_published_port(fact: Fact) -> None:
    assert list(published_in([fact])) == []


def test_what_an_enclave_sends_from_a_withdrawn_port_gets_another_one() -> None:
    end = ip_address("10.73.0.2")
    for number in (53, 32767, 32768, 65535):
        first, last = PublishedPort("udp", number, end, number).other_ports or (0, 0)
        assert 1024 <= first < last <= 65535
        assert not first <= number <= last
    assert PublishedPort("udp", 80, end, 8080).other_ports is None
