"""DNS messages (RFC 1035): checks queries, makes the forwarder's own answers, and finds addresses in other answers.

Messages that pass are not changed, byte for byte. That includes EDNS (RFC 6891), the case of letters, and types and
codes that this module does not know. dnspython parses each message. A message that it cannot parse is malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.edns import EDECode
from dns.rcode import Rcode
from dns.rdtypes.svcbbase import ParamKey

from wgvsock.addresses import IpAddress

MAX_QUERY: Final = 4096
"""Bytes in a query. A name and a type take at most 300, and EDNS options seldom as much again."""

PLAIN_SIZE: Final = 512
"""Bytes in a datagram for a client without EDNS (RFC 1035, section 4.2.1)."""

OUR_SIZE: Final = 1232
"""Bytes in a datagram that is never fragmented (DNS flag day 2020). The forwarder's own answers announce this size."""

HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!HH")
_QR: Final = 0x8000
_TC: Final = 0x0200
_RD: Final = 0x0100
_OPCODE: Final = 0x7800
_ONE_QUESTION: Final = (1, 0, 0)
"""Counts of questions, answers and authorities."""

_REFUSED_TYPES: Final = range(249, 256)
"""TKEY, TSIG, IXFR, AXFR, MAILB, MAILA and ANY, which are not record types (RFC 6895, section 3.1). A stub resolver has
no use for zone transfers, and an answer to ANY need not contain what the enclave looks for (RFC 8482)."""

UNANSWERED: Final = frozenset({Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})
"""Codes that mean that another name server may know the answer. The C library then asks the next one
(resolv.conf(5))."""

_BARE_ERRORS: Final = UNANSWERED | {Rcode.FORMERR}
"""Codes that some servers send without repeating the question."""

_MAX_CHAIN: Final = 16
"""Aliases to follow, as many as BIND does."""


class MalformedError(Exception):
    """The message is not a query or an answer that can be passed on.

    Attributes:
        reply: The answer to its sender, in wire format; None if there is none.
    """

    def __init__(self, reply: bytes | None = None) -> None:
        super().__init__()
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Query:
    """One query from the enclave.

    Attributes:
        wire: The message as it arrived.
        question: The bytes of the question, which an answer has to repeat.
        name: The name in lower case, without the trailing dot; ``.`` is the root. Bytes that a host name cannot contain
            are escaped.
        size: Bytes of the largest datagram that the client accepts.
        message: The parsed message.
    """

    wire: bytes
    question: bytes
    name: str
    size: int
    message: dns.message.Message

    @property
    def is_servable(self) -> bool:
        """Whether it asks for a type of record."""
        return self.message.question[0].rdtype not in _REFUSED_TYPES

    @property
    def is_judgeable(self) -> bool:
        r"""Whether its name is unambiguous as text: ``a\.b.c`` has two labels, not three."""
        return "\\" not in self.name


def read_query(wire: bytes) -> Query:
    """Parse a message from the enclave.

    Args:
        wire: The message in wire format.

    Raises:
        MalformedError: The message is not a plain query with one question.
    """
    if len(wire) < HEADER.size:
        raise MalformedError
    _, flags, *counts, _ = HEADER.unpack_from(wire)
    if flags & _QR:
        raise MalformedError  # answering an answer could start an endless exchange
    if flags & _OPCODE:
        raise MalformedError(_bare(wire, Rcode.NOTIMP))
    malformed = MalformedError(_bare(wire, Rcode.FORMERR))
    if len(wire) > MAX_QUERY or tuple(counts) != _ONE_QUESTION:
        raise malformed
    try:
        message = dns.message.from_wire(wire)
    except Exception as error:  # dnspython may raise anything on hostile input
        raise malformed from error
    asked = message.question[0]
    question = b"".join((asked.name.to_wire() or b"", _QUESTION.pack(asked.rdtype, asked.rdclass)))
    # The name must not be compressed: a pointer into the header would yield another name once the identifier changes.
    if message.additional or wire[HEADER.size : HEADER.size + len(question)] != question:
        raise malformed
    name = asked.name.to_text(omit_final_dot=True).lower()
    return Query(wire, question, name, max(PLAIN_SIZE, message.payload), message)


def with_number(wire: bytes, number: bytes) -> bytes:
    """The same message with another identifier of two bytes."""
    return number + wire[2:]


def answers(query: Query, number: bytes, wire: bytes) -> bool:
    """Whether a message answers a query that was sent with this identifier (RFC 5452, section 9.1)."""
    if len(wire) < HEADER.size or wire[:2] != number:
        return False
    _, flags, *counts = HEADER.unpack_from(wire)
    if not flags & _QR or flags & _OPCODE:
        return False
    if counts[0] == 0:
        return rcode_of(wire) in _BARE_ERRORS and counts[:3] == [0, 0, 0]
    return counts[0] == 1 and _same_question(wire[HEADER.size : HEADER.size + len(query.question)], query.question)


def rcode_of(wire: bytes) -> int:
    """The code in the header of an answer, without the bits that EDNS adds."""
    return wire[3] & 0xF


def truncated(wire: bytes, query: Query) -> bytes:
    """A truncated answer, which makes the client ask again over TCP (RFC 7766)."""
    message = dns.message.make_response(query.message, our_payload=OUR_SIZE)
    message.flags = dns.flags.Flag(HEADER.unpack_from(wire)[1] | _TC)
    return message.to_wire()


def is_truncated(wire: bytes) -> bool:
    """Whether an answer is marked as truncated."""
    return bool(HEADER.unpack_from(wire)[1] & _TC)


def refusal(query: Query, code: Rcode, reason: EDECode, text: str) -> bytes:
    """An answer that the forwarder makes itself. It tells a client with EDNS the reason (RFC 8914).

    Args:
        query: The query to answer.
        code: The code in the header.
        reason: The extended error code.
        text: The reason for people.

    Returns:
        The answer in wire format.
    """
    message = dns.message.make_response(query.message, recursion_available=True, our_payload=OUR_SIZE)
    message.set_rcode(code)
    if message.edns >= 0:
        message.use_edns(0, 0, OUR_SIZE, query.message.payload, [dns.edns.EDEOption(reason, text)])
    return message.to_wire()


def read_answer(wire: bytes) -> dns.message.Message:
    """Parse an answer from a name server. Trailing bytes are ignored, as resolvers do.

    Args:
        wire: The message in wire format.

    Raises:
        MalformedError: The message cannot be parsed.
    """
    try:
        return dns.message.from_wire(wire, ignore_trailing=True)
    except Exception as error:  # as in `read_query`
        raise MalformedError from error


def addresses_of(query: Query, message: dns.message.Message) -> list[tuple[IpAddress, float]]:
    """Find the addresses of the name that was asked for, following aliases.

    Addresses are in A and AAAA records, and in the hints of HTTPS and SVCB records (RFC 9460, section 7.3). A server
    may add records of other names, which are ignored.

    Returns:
        Each address with its TTL in seconds: the lowest TTL on the path to it.
    """
    lives = _chain(query.message.question[0].name, message)
    found: dict[IpAddress, float] = {}
    for rrset in message.answer:
        if rrset.rdclass == dns.rdataclass.IN and rrset.name in lives:
            for record in rrset:
                for address in _addresses(record):
                    found[address] = min(lives[rrset.name], rrset.ttl, found.get(address, rrset.ttl))
    return list(found.items())


def without(message: dns.message.Message, refused: Collection[IpAddress], longest: float = float("inf")) -> bytes:
    """Remove every record that contains one of the refused addresses.

    Args:
        message: The answer, which is modified.
        refused: The addresses to remove.
        longest: The highest TTL of a record, in seconds. Higher TTLs are lowered to it.

    Returns:
        The answer in wire format.

    Raises:
        MalformedError: The answer would exceed 65,535 bytes, because its names were compressed more tightly.
    """
    for section in (message.answer, message.authority, message.additional):
        for rrset in list(section):
            for record in [record for record in rrset if not set(refused).isdisjoint(_addresses(record))]:
                rrset.remove(record)  # type: ignore[no-untyped-call]
            rrset.ttl = int(min(rrset.ttl, longest))
            if not rrset:
                section.remove(rrset)
    try:
        return message.to_wire(max_size=65535)
    except dns.exception.DNSException as error:
        raise MalformedError from error


def _chain(name: dns.name.Name, message: dns.message.Message) -> dict[dns.name.Name, float]:
    """A name and the names that it is an alias of, each with the seconds for which that is valid."""
    life = float("inf")
    aliases = {rrset.name: rrset for rrset in message.answer if rrset.rdtype == dns.rdatatype.CNAME}
    lives = {name: life}
    while (alias := aliases.get(name)) is not None and len(lives) <= _MAX_CHAIN:
        name, life = alias[0].target, min(life, alias.ttl)
        if name in lives:
            break
        lives[name] = life
    return lives


def _addresses(record: Any) -> Iterator[IpAddress]:
    match record.rdtype:
        case dns.rdatatype.A | dns.rdatatype.AAAA:
            yield ip_address(record.address)
        case dns.rdatatype.HTTPS | dns.rdatatype.SVCB:
            for key in (ParamKey.IPV4HINT, ParamKey.IPV6HINT):
                if (hint := record.params.get(key)) is not None:
                    yield from map(ip_address, hint.addresses)


def _same_question(one: bytes, other: bytes) -> bool:
    """Whether two questions are equal, ignoring the case of letters."""
    tail = _QUESTION.size
    return one[-tail:] == other[-tail:] and one[:-tail].lower() == other[:-tail].lower()


def _bare(wire: bytes, code: Rcode) -> bytes:
    """An answer without the question, which could not be parsed."""
    number, flags = HEADER.unpack_from(wire)[:2]
    return HEADER.pack(number, _QR | flags & (_OPCODE | _RD) | code, 0, 0, 0, 0)
