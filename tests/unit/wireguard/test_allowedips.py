from __future__ import annotations

import ipaddress
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.effort import effort
from wgvsock.addresses import IpNetwork
from wgvsock.wireguard.allowedips import AllowedIps
from wgvsock.wireguard.constants import ROUTE_CACHE_SIZE

Owner = TypeVar("Owner")


def network(text: str) -> IpNetwork:
    return ipaddress.ip_network(text)


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def filled(*routes: tuple[str, str]) -> AllowedIps[str]:
    table: AllowedIps[str] = AllowedIps()
    for text, owner in routes:
        table.insert(network(text), owner)
    return table


def test_the_longest_prefix_wins() -> None:
    table = filled(("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("10.1.2.3/32", "c"), ("0.0.0.0/0", "d"))
    assert table.lookup(address("10.2.0.1")) == "a"
    assert table.lookup(address("10.1.0.1")) == "b"
    assert table.lookup(address("10.1.2.3")) == "c"
    assert table.lookup(address("192.0.2.1")) == "d"


def test_versions_do_not_mix() -> None:
    table = filled(("0.0.0.0/0", "four"), ("fd00::/8", "six"))
    assert table.lookup(address("fd00::1")) == "six"
    assert table.lookup(address("2001:db8::1")) is None
    assert table.lookup(address("::")) is None
    assert table.lookup(address("192.0.2.1")) == "four"


def test_a_network_moves_to_its_last_owner() -> None:
    table = filled(("10.0.0.0/8", "a"), ("10.0.0.0/8", "b"))
    assert table.lookup(address("10.0.0.1")) == "b"
    assert table.networks("a") == ()
    assert table.networks("b") == (network("10.0.0.0/8"),)


def test_networks_are_listed_in_the_order_given() -> None:
    texts = ("10.0.0.0/8", "fd00::/64", "10.1.0.0/16", "192.0.2.0/24")
    table = filled(*((text, "a") for text in texts), ("10.0.0.0/8", "a"))
    assert [str(net) for net in table.networks("a")] == [*texts[1:], texts[0]]


def test_all_networks_move_to_an_heir() -> None:
    table = filled(("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("fd00::/64", "a"))
    assert table.lookup(address("10.2.0.1")) == "a"
    table.transfer("a", "c")
    assert table.networks("a") == ()
    assert [str(net) for net in table.networks("c")] == ["10.0.0.0/8", "fd00::/64"]
    assert table.lookup(address("10.2.0.1")) == "c"
    assert table.lookup(address("10.1.0.1")) == "b"
    table.transfer("nobody", "d")
    assert table.networks("d") == ()


def test_remove_owner() -> None:
    table = filled(("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("11.0.0.0/16", "b"), ("fd00::/64", "b"))
    table.remove_owner("b")
    assert table.networks("b") == ()
    assert table.lookup(address("10.1.0.1")) == "a"
    assert table.lookup(address("fd00::1")) is None
    table.remove_owner("nobody")
    assert table.lookup(address("10.1.0.1")) == "a"


def test_a_prefix_length_stays_while_somebody_else_uses_it() -> None:
    table = filled(("10.1.0.0/16", "a"), ("10.2.0.0/16", "b"))
    table.remove_owner("b")
    assert table.lookup(address("10.1.0.1")) == "a"
    assert table.lookup(address("10.2.0.1")) is None


def test_changes_are_seen_behind_the_cache() -> None:
    table = filled(("10.0.0.0/8", "a"))
    assert table.lookup(address("10.1.0.1")) == "a"
    assert table.lookup(address("192.0.2.1")) is None
    table.insert(network("10.1.0.0/16"), "b")
    table.insert(network("192.0.2.0/24"), "c")
    assert table.lookup(address("10.1.0.1")) == "b"
    assert table.lookup(address("192.0.2.1")) == "c"
    table.remove_owner("b")
    assert table.lookup(address("10.1.0.1")) == "a"


def test_the_cache_is_bounded() -> None:
    table = filled(("10.0.0.0/8", "a"))
    for number in range(3 * ROUTE_CACHE_SIZE):
        table.lookup(number.to_bytes(4, "big"))
        assert len(table._cache) <= ROUTE_CACHE_SIZE
    assert table.lookup(address("10.0.0.1")) == "a"


def test_an_owner_costs_what_it_has_and_not_what_the_table_holds() -> None:
    def efforts(others: int) -> list[int]:
        table = filled(*((f"10.{number >> 8}.{number & 255}.0/24", f"owner {number}") for number in range(others)))
        table.insert(network("192.0.2.0/24"), "few")
        table.insert(network("192.0.3.0/24"), "few")
        return [
            effort(lambda: table.networks("few")),
            effort(lambda: table.insert(network("10.0.0.0/24"), "few")),
            effort(lambda: table.remove(network("192.0.3.0/24"), "few")),
            effort(lambda: table.remove_owner("few")),
        ]

    assert efforts(1000) == efforts(10)


class NaiveAllowedIps:
    """A list with a linear search."""

    def __init__(self) -> None:
        self.routes: list[tuple[IpNetwork, int]] = []

    def insert(self, net: IpNetwork, owner: int) -> None:
        self.routes = [(other, whose) for other, whose in self.routes if other != net]
        self.routes.append((net, owner))

    def remove_owner(self, owner: int) -> None:
        self.routes = [(net, whose) for net, whose in self.routes if whose != owner]

    def remove(self, net: IpNetwork, owner: int) -> None:
        self.routes = [route for route in self.routes if route != (net, owner)]

    def lookup(self, packed: bytes) -> int | None:
        ip = ipaddress.ip_address(packed)
        matches = [(net.prefixlen, owner) for net, owner in self.routes if net.version == ip.version and ip in net]
        return max(matches)[1] if matches else None


def addresses(bits: int) -> st.SearchStrategy[int]:
    # Few distinct bits at both ends, so that networks overlap and addresses hit.
    high, low = st.integers(0, 3), st.integers(0, 3)
    return st.builds(lambda a, b: a << (bits - 2) | a << (bits - 9) | b, high, low)


NETWORKS: st.SearchStrategy[IpNetwork] = st.one_of(
    st.builds(lambda a, n: ipaddress.IPv4Network((a, n), strict=False), addresses(32), st.integers(0, 32)),
    st.builds(lambda a, n: ipaddress.IPv6Network((a, n), strict=False), addresses(128), st.integers(0, 128)),
)
ADDRESSES = st.one_of(
    addresses(32).map(lambda a: a.to_bytes(4, "big")), addresses(128).map(lambda a: a.to_bytes(16, "big"))
)
STEPS = st.one_of(
    st.tuples(st.just("insert"), NETWORKS, st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("remove"), NETWORKS, st.integers(0, 3)),
    st.tuples(st.just("lookup"), ADDRESSES),
)


@given(st.lists(STEPS, max_size=60))
def test_agrees_with_a_naive_list(steps: list[tuple[object, ...]]) -> None:
    table: AllowedIps[int] = AllowedIps()
    naive = NaiveAllowedIps()
    for step in steps:
        match step:
            case ("insert", ipaddress.IPv4Network() | ipaddress.IPv6Network() as net, int(owner)):
                table.insert(net, owner)
                naive.insert(net, owner)
            case ("remove", int(owner)):
                table.remove_owner(owner)
                naive.remove_owner(owner)
            case ("remove", ipaddress.IPv4Network() | ipaddress.IPv6Network() as net, int(owner)):
                table.remove(net, owner)
                naive.remove(net, owner)
            case ("lookup", bytes(packed)):
                assert table.lookup(packed) == naive.lookup(packed)
    for owner in range(4):
        assert list(table.networks(owner)) == [net for net, whose in naive.routes if whose == owner]
