"""Cryptokey routing: finds the peer that an address belongs to (whitepaper section 2).

There is one dictionary for each prefix length in use, searched from the longest. That takes a handful of look-ups,
because tables use few lengths. A small cache of exact addresses in front serves the hot path. One dictionary for each
owner makes the cost of listing and removing depend on the owner's networks, not on the whole table.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from wgvsock.addresses import IpNetwork
from wgvsock.wireguard.constants import ROUTE_CACHE_SIZE

Owner = TypeVar("Owner", bound=Hashable)

_Place = tuple[int, int, int]
"""A network as address size in bytes, bits to shift out, and the remaining prefix: ten times faster to hash."""


class AllowedIps(Generic[Owner]):
    """Networks, each with one owner. An address belongs to the longest network that contains it."""

    __slots__ = ("_cache", "_networks", "_tables")

    def __init__(self) -> None:
        self._networks: dict[Owner, dict[_Place, IpNetwork]] = {}
        # Address size in bytes -> bits to shift out, ascending (longest prefix first) -> prefix -> owner.
        self._tables: dict[int, dict[int, dict[int, Owner]]] = {4: {}, 16: {}}
        self._cache: dict[bytes, Owner | None] = {}

    def insert(self, network: IpNetwork, owner: Owner) -> None:
        """Give a network to an owner, taking it from its former owner."""
        place = _place(network)
        size, shift, prefix = place
        tables = self._tables[size]
        if shift not in tables:
            tables[shift] = {}
            self._tables[size] = tables = dict(sorted(tables.items()))
        before = tables[shift].get(prefix)
        if before is not None:
            # Even if the owner is the same: networks are listed in the order in which they were added.
            self._forget(before, place)
        tables[shift][prefix] = owner
        self._networks.setdefault(owner, {})[place] = network
        self._cache.clear()

    def remove(self, network: IpNetwork, owner: Owner) -> None:
        """Take a network from an owner. Does nothing if the owner does not have it."""
        place = _place(network)
        if place in self._networks.get(owner, ()):
            self._forget(owner, place)
            self._clear(place)
            self._cache.clear()

    def remove_owner(self, owner: Owner) -> None:
        """Remove all networks of an owner."""
        for place in self._networks.pop(owner, ()):
            self._clear(place)
        self._cache.clear()

    def transfer(self, owner: Owner, heir: Owner) -> None:
        """Give all networks of an owner to another owner that has none."""
        self._networks[heir] = self._networks.pop(owner, {})
        for size, shift, prefix in self._networks[heir]:
            self._tables[size][shift][prefix] = heir
        self._cache.clear()

    def networks(self, owner: Owner) -> tuple[IpNetwork, ...]:
        """An owner's networks, in the order in which they were added."""
        return tuple(self._networks.get(owner, {}).values())

    def lookup(self, address: bytes) -> Owner | None:
        """The owner of an address (4 or 16 bytes, network order), or None."""
        try:
            return self._cache[address]
        except KeyError:
            return self._search(address)

    def _forget(self, owner: Owner, place: _Place) -> None:
        networks = self._networks[owner]
        del networks[place]
        if not networks:
            del self._networks[owner]

    def _clear(self, place: _Place) -> None:
        size, shift, prefix = place
        prefixes = self._tables[size][shift]
        del prefixes[prefix]
        if not prefixes:
            del self._tables[size][shift]

    def _search(self, address: bytes) -> Owner | None:
        number = int.from_bytes(address, "big")
        owner = None
        for shift, prefixes in self._tables[len(address)].items():
            owner = prefixes.get(number >> shift)
            if owner is not None:
                break
        if len(self._cache) >= ROUTE_CACHE_SIZE:
            # A sender of made-up addresses can only get the cache cleared, which costs one search per address.
            self._cache.clear()
        self._cache[address] = owner
        return owner


def _place(network: IpNetwork) -> _Place:
    bits = network.max_prefixlen
    shift = bits - network.prefixlen
    return bits // 8, shift, int(network.network_address) >> shift
