"""Links of the pool: pairs that never overlap and avoid the usual ranges of VPCs."""

from __future__ import annotations

import itertools
from ipaddress import ip_network

from wgvsock.relay.links import MAX_LINKS, POOL, free_place, link, numbered

TAKEN = [
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.19.0.0/16", "169.254.0.0/16")
]


def test_the_first_link() -> None:
    first = link(0)
    assert list(map(str, first.relay)) == ["198.18.73.2/31", "fddc:7f99:d74c::2/127"]
    assert list(map(str, first.enclave)) == ["198.18.73.3/31", "fddc:7f99:d74c::3/127"]


def test_both_ends_lie_in_one_prefix_and_no_two_links_overlap() -> None:
    links = [link(place) for place in range(MAX_LINKS)]
    for one in links:
        for ours, theirs in zip(one.relay, one.enclave, strict=True):
            assert ours.network == theirs.network
            assert any(ours.ip in pool for pool in POOL if pool.version == ours.version)
    networks = [end.network for one in links for end in one.relay]
    assert len(set(networks)) == 2 * MAX_LINKS


def test_the_pool_is_clear_of_what_vpcs_and_pods_use() -> None:
    for pool, taken in itertools.product(POOL, TAKEN):
        assert pool.version != taken.version or not pool.overlaps(taken)
    assert POOL[1].subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]


def test_the_lowest_free_place() -> None:
    assert free_place(set()) == 0
    assert free_place({0, 1, 3}) == 2


def test_the_number_of_an_interface_that_would_be_given_out() -> None:
    assert [numbered(name) for name in ("wg0", "wg12", "wg", "wgx", "7", "tunnel", None)] == [0, 12, *[None] * 5]
