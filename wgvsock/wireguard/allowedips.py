"""Cryptokey routing: which peer an address belongs to (whitepaper section 2).

One dictionary for each prefix length in use, searched from the longest: a handful of look-ups, as tables use few
lengths. In front of it a small cache of exact addresses, which is what the hot path hits.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from wgvsock.wireguard.constants import ROUTE_CACHE_SIZE

Owner = TypeVar("Owner")
Network = IPv4Network | IPv6Network


class AllowedIps(Generic[Owner]):
    """Networks and the one owner of each; an address belongs to the longest network that holds it."""

    __slots__ = ("_cache", "_owners", "_tables")

    def __init__(self) -> None:
        self._owners: dict[Network, Owner] = {}
        # Address size in bytes -> bits to shift out, ascending, that is longest prefix first -> prefix -> owner.
        self._tables: dict[int, dict[int, dict[int, Owner]]] = {4: {}, 16: {}}
        self._cache: dict[bytes, Owner | None] = {}

    def insert(self, network: Network, owner: Owner) -> None:
        """Give a network to an owner; whoever had it loses it."""
        # Taken out first, so that an owner's networks are listed in the order in which they were given.
        self._owners.pop(network, None)
        self._owners[network] = owner
        shift = network.max_prefixlen - network.prefixlen
        tables = self._tables[network.max_prefixlen // 8]
        if shift not in tables:
            tables[shift] = {}
            self._tables[network.max_prefixlen // 8] = dict(sorted(tables.items()))
            tables = self._tables[network.max_prefixlen // 8]
        tables[shift][int(network.network_address) >> shift] = owner
        self._cache.clear()

    def remove_owner(self, owner: Owner) -> None:
        """Take all networks of an owner out."""
        for network in self.networks(owner):
            del self._owners[network]
            tables = self._tables[network.max_prefixlen // 8]
            shift = network.max_prefixlen - network.prefixlen
            del tables[shift][int(network.network_address) >> shift]
            if not tables[shift]:
                del tables[shift]
        self._cache.clear()

    def networks(self, owner: Owner) -> tuple[Network, ...]:
        """An owner's networks, in the order in which they were given."""
        return tuple(network for network, other in self._owners.items() if other is owner)

    def lookup(self, address: bytes) -> Owner | None:
        """The owner of an address (4 or 16 bytes, network order); None: nobody's."""
        try:
            return self._cache[address]
        except KeyError:
            return self._search(address)

    def _search(self, address: bytes) -> Owner | None:
        number = int.from_bytes(address, "big")
        owner = None
        for shift, prefixes in self._tables[len(address)].items():
            owner = prefixes.get(number >> shift)
            if owner is not None:
                break
        if len(self._cache) >= ROUTE_CACHE_SIZE:
            # Whoever makes up addresses only gets the cache emptied, which costs one search each.
            self._cache.clear()
        self._cache[address] = owner
        return owner
