"""What is closed under any policy, in each spelling of its addresses."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import pytest

from wgvsock.egress.closed import (
    CLOSED_NETWORKS,
    EMBEDDINGS,
    closed_network,
    contains,
    opens_closed,
    spelled_addresses,
    spellings,
    within,
)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "127.0.0.1", "0.0.0.1"),
        *("fd00:ec2::254", "fd00:ec2::23", "fe80::1", "::1", "::"),
        *("::ffff:169.254.169.254", "::ffff:10.0.0.1", "::a9fe:a9fe", "::ffff:0:a9fe:a9fe"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1"),
    ],
)
def test_what_is_closed(address: str) -> None:
    network = closed_network(ip_address(address))
    assert network is not None
    assert contains(network, ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["169.253.255.255", "10.0.0.1", "203.0.113.1", "64:ff9b::cb00:7101", "fd00:ec1::1", "2001:db8::1", "fec0::1"],
)
def test_what_is_not(address: str) -> None:
    assert closed_network(ip_address(address)) is None


def test_no_closed_network_overlaps_another_one() -> None:
    """nft would refuse a set with intervals."""
    for one, other in itertools.combinations(CLOSED_NETWORKS, 2):
        assert not within(one, other)
        assert not within(other, one)


def test_an_ipv4_network_has_a_spelling_behind_each_prefix() -> None:
    found = spellings(ip_network("10.0.0.0/8"))
    assert found[0] == ip_network("10.0.0.0/8")
    assert found[1:4] == (
        ip_network("64:ff9b::a00:0/104"),
        ip_network("64:ff9b:1::a00:0/104"),
        ip_network("2002:a00::/24"),
    )
    assert len(found) == 1 + len(EMBEDDINGS)
    assert spellings(ip_network("2001:db8::/32")) == (ip_network("2001:db8::/32"),)
    assert ip_address("64:ff9b::a00:105") in spelled_addresses(ip_address("10.0.1.5"))


def test_a_closed_network_is_opened_by_its_name_and_not_by_a_wider_one() -> None:
    assert opens_closed(ip_network("169.254.169.123/32"))
    assert opens_closed(ip_network("169.254.0.0/16"))
    assert opens_closed(ip_network("64:ff9b::a9fe:a97b/128"))
    assert not opens_closed(ip_network("0.0.0.0/0"))
    assert not opens_closed(ip_network("169.0.0.0/8"))
    assert not opens_closed(ip_network("::/0"))
    assert not within(ip_network("10.0.0.0/8"), ip_network("::/0"))
