"""Messages for the tests of `wgvsock.dns`, and a judge that records the requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import dns.message
import dns.rdatatype
import dns.rrset
from dns.edns import OptionType
from dns.rcode import Rcode

from wgvsock.addresses import IpAddress
from wgvsock.dns.forwarder import Forwarder
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.dns import LOOPBACK, MemoryDnsSockets, Script, ScriptedNameServer

SERVER = "10.96.0.10"
OTHER = "10.96.0.11"


def query(name: str = "www.lab.test", kind: str = "A", **options: object) -> bytes:
    """A query's bytes."""
    return dns.message.make_query(name, kind, **options).to_wire()  # type: ignore[arg-type]


def reply(wire: bytes, *records: str, rcode: int = 0) -> bytes:
    """An answer with these records, each ``NAME TTL TYPE DATA``."""
    message = dns.message.make_response(dns.message.from_wire(wire), recursion_available=True)
    message.set_rcode(Rcode(rcode))
    for record in records:
        name, ttl, kind, *data = record.split(maxsplit=3)
        message.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, *data))
    return message.to_wire(max_size=65535)


def says(*records: str, rcode: int = 0) -> Script:
    """A name server that has these records for every name."""
    return lambda wire, _: [reply(wire, *records, rcode=rcode)]


def silent(_wire: bytes, _over_tcp: bool) -> list[bytes]:
    """A name server that never answers."""
    return []


def records(wire: bytes) -> list[str]:
    """Types and data of an answer's first section."""
    message = dns.message.from_wire(wire)
    return [f"{dns.rdatatype.to_text(rrset.rdtype)} {record}" for rrset in message.answer for record in rrset]


def reasons(wire: bytes) -> list[int]:
    """The extended errors of an answer."""
    options = dns.message.from_wire(wire).options
    return [int(option.code) for option in options if option.otype == OptionType.EDE]


class Judge:
    """Allows some names, refuses some addresses, and counts the requests."""

    def __init__(self, *names: str, closed: Sequence[str] = ()) -> None:
        self.names = names
        self.closed = frozenset(map(ip_address, closed))
        self.pinned: list[tuple[str, dict[str, float]]] = []
        self.fails: Exception | None = None
        self.longest = float("inf")

    def allows(self, name: str) -> bool:
        """See `NameJudge.allows`."""
        return name in self.names

    async def pin(self, name: str, found: Sequence[tuple[IpAddress, float]]) -> frozenset[IpAddress]:
        """See `NameJudge.pin`."""
        if self.fails is not None:
            raise self.fails
        self.pinned.append((name, {str(address): life for address, life in found}))
        return self.closed & {address for address, _ in found}


@contextmanager
def forwarding(*scripts: Script, judge: Judge | None = None) -> Iterator[tuple[Forwarder, list[ScriptedNameServer]]]:
    """A forwarder at 10.73.0.1, and a name server for each script: 10.96.0.10, 10.96.0.11 and so on."""
    sockets = MemoryDnsSockets()
    forwarder = Forwarder(sockets, SeededRandom("forwarder"), judge)
    addresses = [f"10.96.0.{10 + position}" for position in range(len(scripts))]
    servers = [ScriptedNameServer(sockets, *pair) for pair in zip(addresses, scripts, strict=True)]
    forwarder.servers = tuple(map(ip_address, addresses))
    forwarder.open([ip_address("10.73.0.1")], "wg0", [ip_address(LOOPBACK)])
    try:
        for server in servers:
            server.open()
        yield forwarder, servers
    finally:
        forwarder.close()
        for server in servers:
            server.close()
