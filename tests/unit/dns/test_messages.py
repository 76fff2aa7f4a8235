from __future__ import annotations

import struct
from ipaddress import ip_address

import dns.flags
import dns.message
import pytest
from dns.edns import EDECode
from dns.rcode import Rcode
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.dns.queries import query, reasons, records, reply
from wgvsock.dns.messages import (
    MAX_QUERY,
    PLAIN_SIZE,
    MalformedError,
    addresses_of,
    answers,
    is_truncated,
    rcode_of,
    read_answer,
    read_query,
    refusal,
    truncated,
    with_number,
    without,
)


def refused_as(wire: bytes) -> bytes | None:
    with pytest.raises(MalformedError) as caught:
        read_query(wire)
    return caught.value.reply


@pytest.mark.parametrize("name", ["www.lab.test", "wWw.LaB.tEsT", "_sip._tcp.lab.test"])
def test_a_query_is_read_and_kept_as_it_is(name: str) -> None:
    wire = query(name, use_edns=0, payload=4096, want_dnssec=True)
    read = read_query(wire)
    assert (read.wire, read.name, read.size) == (wire, name.lower(), 4096)
    assert read.is_servable
    assert read.is_judgeable


def test_without_edns_a_datagram_has_512_bytes_and_never_fewer() -> None:
    assert read_query(query()).size == PLAIN_SIZE
    assert read_query(query(use_edns=0, payload=100)).size == PLAIN_SIZE


def test_the_root_has_a_name() -> None:
    assert read_query(query(".", "NS")).name == "."


@pytest.mark.parametrize("kind", ["ANY", "AXFR", "IXFR", "MAILA", "MAILB", "TKEY", "TSIG"])
def test_what_is_no_type_of_records_is_not_served(kind: str) -> None:
    assert not read_query(struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\1x\0" + query_tail(kind)).is_servable


def query_tail(kind: str) -> bytes:
    return struct.pack("!HH", dns.rdatatype.from_text(kind), 1)


def test_a_type_that_nobody_knows_is_served() -> None:
    assert read_query(query(kind="TYPE65280")).is_servable


@pytest.mark.parametrize("label", [b"a.b", b"a\\b", b"\xff", b"a b"])
def test_a_name_that_reads_in_two_ways_is_told_apart(label: bytes) -> None:
    wire = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\4test\0\0\1\0\1"
    assert not read_query(wire).is_judgeable


@pytest.mark.parametrize("wire", [b"", b"\0" * 11, reply(query())], ids=["nothing", "half a header", "an answer"])
def test_what_is_no_query_gets_no_answer(wire: bytes) -> None:
    assert refused_as(wire) is None


def test_another_opcode_is_not_implemented() -> None:
    update = bytes([0x12, 0x34, 0x29, 0, *bytes(8)])
    told = refused_as(update)
    assert told is not None
    assert told[:2] == update[:2]
    assert dns.message.from_wire(told).rcode() == Rcode.NOTIMP
    assert dns.message.from_wire(told).opcode() == 5


def pointing_into_the_header() -> bytes:
    # The number of the query is the label's length and its first byte: 01 78 is "x", under another number another name.
    return struct.pack("!6H", 0x0178, 0x0000, 1, 0, 0, 0) + b"\xc0\0\0\1\0\1"


def two_questions_alike() -> bytes:
    wire = query()
    return wire[:4] + b"\0\2" + wire[6:] + wire[12:]


@pytest.mark.parametrize(
    "wire",
    [
        query() + b"\0",
        query()[:-1],
        query()[:4] + b"\0\0" + query()[6:],
        two_questions_alike(),
        pointing_into_the_header(),
        reply(query(), "www.lab.test. 1 A 1.2.3.4")[:2] + b"\1\0" + reply(query(), "www.lab.test. 1 A 1.2.3.4")[4:],
        query()[:10] + b"\0\1" + query()[12:] + b"\1x\0\0\1\0\1\0\0\0\0\0\4\1\2\3\4",
        query()[:12] + b"\x50" + query()[13:],
        query() + bytes(MAX_QUERY),
    ],
    ids=["more", "less", "no question", "two", "pointer", "answers", "additional", "label of 80", "too long"],
)
def test_what_is_not_one_plain_question_is_malformed(wire: bytes) -> None:
    told = refused_as(wire)
    assert told is not None
    assert told[:2] == wire[:2]
    assert dns.message.from_wire(told).rcode() == Rcode.FORMERR


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_query_or_malformed(data: bytes) -> None:
    try:
        read = read_query(data)
    except MalformedError:
        return
    assert read.wire == data
    assert data[12:].startswith(read.question)


def test_an_answer_repeats_number_and_question() -> None:
    read, wire = read_query(query()), reply(query(), "www.lab.test. 1 A 1.2.3.4")
    number = wire[:2]
    assert answers(read, number, wire)
    assert answers(read, number, wire[:12] + wire[12:16].swapcase() + wire[16:])  # \3www
    assert not answers(read, bytes([number[0] ^ 1, number[1]]), wire)
    assert not answers(read, number, wire[:11])
    assert not answers(read, number, number + query()[2:])
    assert not answers(read, number, number + reply(query("else.lab.test"))[2:])
    assert not answers(read, number, number + reply(query(kind="AAAA"))[2:])
    assert not answers(read, number, number + b"\xa8" + wire[3:])  # of another opcode


def test_types_that_differ_by_a_bit_are_different_types() -> None:
    # 0x41 and 0x61 are A and a: the case of letters counts in names alone.
    read = read_query(query(kind="TYPE65"))
    wire = reply(query(kind="TYPE97"))
    assert not answers(read, wire[:2], wire)


def test_an_error_may_come_without_the_question() -> None:
    read = read_query(query())
    bare = struct.pack("!6H", 7, 0x8182, 0, 0, 0, 0)
    assert answers(read, b"\0\7", bare)
    assert not answers(read, b"\0\7", bare[:3] + b"\0" + bare[4:])
    assert not answers(read, b"\0\7", bare[:6] + b"\0\1" + bare[8:])


def test_a_number_is_changed_and_nothing_else() -> None:
    wire = query()
    assert with_number(wire, b"\xab\xcd") == b"\xab\xcd" + wire[2:]


def test_a_code_is_read_from_the_header() -> None:
    assert rcode_of(reply(query(), rcode=Rcode.NXDOMAIN)) == Rcode.NXDOMAIN


@pytest.mark.parametrize("edns", [-1, 0])
def test_a_cut_answer_keeps_number_flags_and_question(edns: int) -> None:
    wire = query("wWw.lab.test", use_edns=edns, want_dnssec=not edns)
    whole = reply(wire, "www.lab.test. 1 A 1.2.3.4")
    cut = truncated(whole, read_query(wire))
    assert is_truncated(cut)
    assert not is_truncated(whole)
    assert cut[:2] == wire[:2]
    assert b"wWw" in cut
    message = dns.message.from_wire(cut)
    assert message.flags == dns.message.from_wire(whole).flags | dns.flags.TC
    assert message.edns == edns  # who speaks EDNS is answered so (RFC 6891, section 6.1.1)
    assert not message.answer


def test_a_refusal_says_why_to_whoever_speaks_edns() -> None:
    for edns, expected in ((0, [18]), (-1, [])):
        wire = query("wWw.lab.test", use_edns=edns)
        told = refusal(read_query(wire), Rcode.REFUSED, EDECode.PROHIBITED, "no such name")
        assert told[:2] == wire[:2]
        assert b"wWw" in told
        assert dns.message.from_wire(told).rcode() == Rcode.REFUSED
        assert reasons(told) == expected


def test_what_cannot_be_read_is_malformed() -> None:
    with pytest.raises(MalformedError):
        read_answer(reply(query(), "www.lab.test. 1 A 1.2.3.4")[:-1])


def test_what_follows_a_message_is_not_looked_at() -> None:
    assert read_answer(reply(query(), "www.lab.test. 1 A 1.2.3.4") + b"\0").answer


def found(*lines: str, name: str = "www.lab.test") -> dict[str, float]:
    asked = query(name)
    message = read_answer(reply(asked, *lines))
    return {str(address): life for address, life in addresses_of(read_query(asked), message)}


def test_addresses_are_found_with_their_times() -> None:
    assert found("www.lab.test. 5 A 1.2.3.4", "www.lab.test. 9 AAAA 2001:db8::1") == {"1.2.3.4": 5, "2001:db8::1": 9}


def test_aliases_are_followed_and_the_shortest_time_counts() -> None:
    lines = ("www.lab.test. 7 CNAME a.lab.test.", "a.lab.test. 3 CNAME b.lab.test.", "b.lab.test. 60 A 1.2.3.4")
    assert found(*lines) == {"1.2.3.4": 3}
    assert found(*lines[::-1]) == {"1.2.3.4": 3}


def test_the_case_of_a_name_does_not_matter() -> None:
    assert found("www.lab.test. 7 CNAME B.lab.test.", "b.LAB.test. 60 A 1.2.3.4", name="WWW.lab.test") == {"1.2.3.4": 7}


def test_other_names_are_nothing_that_was_asked_for() -> None:
    assert found("other.lab.test. 7 A 1.2.3.4", "www.lab.test. 7 TXT 1.2.3.4") == {}


@pytest.mark.parametrize("length", [1, 2, 40])
def test_aliases_that_go_round_or_on_end(length: int) -> None:
    names = [f"n{number}.lab.test." for number in range(length)]
    lines = [f"{name} 1 CNAME {names[(number + 1) % length]}" for number, name in enumerate(names)]
    assert found(*lines, name="n0.lab.test") == {}


def test_an_error_without_the_question_has_no_addresses() -> None:
    bare = struct.pack("!6H", 7, 0x8182, 0, 0, 0, 0)
    assert addresses_of(read_query(query()), read_answer(bare)) == []


def test_hints_are_addresses_too() -> None:
    hints = "www.lab.test. 8 HTTPS 1 . alpn=h2 ipv4hint=1.2.3.4,1.2.3.5 ipv6hint=2001:db8::1"
    assert found(hints) == {"1.2.3.4": 8, "1.2.3.5": 8, "2001:db8::1": 8}
    assert found("www.lab.test. 8 HTTPS 0 other.lab.test.") == {}


def test_refused_addresses_are_left_out_wherever_they_stand() -> None:
    wire = reply(
        query(use_edns=0),
        "www.lab.test. 5 A 1.2.3.4",
        "www.lab.test. 5 A 10.0.0.1",
        "www.lab.test. 8 HTTPS 1 . ipv4hint=1.2.3.4,10.0.0.1",
        "www.lab.test. 8 HTTPS 2 . ipv4hint=1.2.3.4",
    )
    message = read_answer(wire)
    closed = [address for address, _ in addresses_of(read_query(query()), message) if str(address).startswith("10.")]
    left = without(message, closed)
    assert records(left) == ["A 1.2.3.4", 'HTTPS 2 . ipv4hint="1.2.3.4"']
    assert left[:2] == wire[:2]
    assert dns.message.from_wire(left).edns == 0


def test_what_fits_as_it_was_compressed_alone_cannot_be_left_in_part() -> None:
    long, count = (b"\x3f" + b"x" * 63) * 3 + b"\0", 400
    wire = struct.pack("!6H", 7, 0x8180, 1, count + 1, 0, 0) + query()[12:]
    wire += b"\xc0\x0c" + struct.pack("!HHIHIH", 33, 1, 60, 6 + len(long), 0, 0) + long
    at = len(wire) - len(long)
    for number in range(1, count):  # SRV records, whose targets are not compressed when they are written (RFC 2782)
        wire += b"\xc0\x0c" + struct.pack("!HHIHIHH", 33, 1, 60, 8, number, 0, 0xC000 | at)
    wire += b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + b"\x0a\0\0\1"
    message = read_answer(wire)
    with pytest.raises(MalformedError):
        without(message, [ip_address("10.0.0.1")])


def test_a_set_of_which_nothing_is_left_is_gone() -> None:
    message = read_answer(reply(query(), "www.lab.test. 5 AAAA ::ffff:169.254.169.254", "www.lab.test. 5 A 1.2.3.4"))
    closed = [address for address, _ in addresses_of(read_query(query()), message) if address.version == 6]
    assert records(without(message, closed)) == ["A 1.2.3.4"]
