from __future__ import annotations

import socket
import struct
import threading

import dns.message
import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRROPT

from lab.guest import servers
from lab.guest.servers import MANY, TcpEcho, Zone, readable

ZONE = Zone("lab.test", "198.51.100.10", "2001:db8:100::10")


def ask(name: str, kind: str, *, edns: int | None = None, over_tcp: bool = False) -> DNS:
    extra = [DNSRROPT(rclass=edns)] if edns else []
    query = DNS(id=77, rd=1, qd=[DNSQR(qname=name, qtype=kind)], ar=extra)
    return DNS(ZONE.answer(bytes(query), over_tcp=over_tcp))


def test_an_answer_carries_the_address_and_a_time_to_live() -> None:
    answer = ask("www.lab.test", "A")
    assert (answer.id, answer.qr, answer.rcode, answer.ancount) == (77, 1, 0, 1)
    assert answer.an[0].rdata == "198.51.100.10"
    assert answer.an[0].ttl == servers.TTL


def test_ipv6() -> None:
    assert ask("WWW.lab.TEST", "AAAA").an[0].rdata == "2001:db8:100::10"


def test_a_type_that_is_not_there_is_an_empty_answer() -> None:
    answer = ask("www.lab.test", "TXT")
    assert (answer.rcode, answer.ancount) == (0, 0)


@pytest.mark.parametrize(("name", "code"), [("nx.lab.test", 3), ("www.example.com", 5)])
def test_names_that_are_not_there(name: str, code: int) -> None:
    assert ask(name, "A").rcode == code


def test_a_long_answer_is_cut_for_udp_whole_over_tcp_and_with_edns() -> None:
    cut = ask("many.lab.test", "A")
    assert (cut.tc, cut.ancount) == (1, 0)
    for whole in (ask("many.lab.test", "A", over_tcp=True), ask("many.lab.test", "A", edns=4096)):
        assert (whole.tc, whole.ancount) == (0, MANY)
        assert len({record.rdata for record in whole.an}) == MANY
    assert ask("many.lab.test", "AAAA").ancount == 0


def test_text_of_four_kilobytes() -> None:
    whole = ask("big.lab.test", "TXT", edns=4096)
    assert (whole.tc, whole.ancount) == (0, 15)
    assert 3500 < len(bytes(whole)) <= 4096
    assert ask("big.lab.test", "TXT", edns=1232).tc == 1


def test_an_alias_and_its_target_live_two_seconds() -> None:
    answer = ask("alias.lab.test", "AAAA")
    assert [(record.rrname, record.ttl, record.rdata) for record in answer.an] == [
        (b"alias.lab.test.", servers.SHORT, b"short.lab.test."),
        (b"short.lab.test.", servers.SHORT, "2001:db8:100::10"),
    ]
    assert ask("short.lab.test", "A").an[0].ttl == servers.SHORT


@pytest.mark.parametrize(
    ("name", "kind", "addresses"),
    [
        ("ip-a9fea9fe", "A", ["169.254.169.254"]),
        ("ip-0a490001-c633640a", "A", ["10.73.0.1", "198.51.100.10"]),
        ("ip-00000000000000000000ffffa9fea9fe", "AAAA", ["::ffff:169.254.169.254"]),
        ("ip-a9fea9fe", "AAAA", []),
    ],
)
def test_an_address_of_ones_own_choice(name: str, kind: str, addresses: list[str]) -> None:
    assert [record.rdata for record in ask(f"{name}.lab.test", kind).an] == addresses


def test_hints() -> None:
    answer = ZONE.answer(bytes(DNS(id=7, qd=[DNSQR(qname="svc.lab.test", qtype=65)])), over_tcp=False)
    (record,) = dns.message.from_wire(answer).answer
    assert str(record[0]) == '1 . ipv4hint="198.51.100.10" ipv6hint="2001:db8:100::10"'


def test_a_failure() -> None:
    assert ask("fail.lab.test", "A").rcode == 2


def test_reverse_names() -> None:
    assert ask("10.100.51.198.in-addr.arpa", "PTR").an[0].rdata == b"www.lab.test."
    assert ask("11.100.51.198.in-addr.arpa", "PTR").rcode == 3


@pytest.mark.parametrize("name", ["wrong-number", "wrong-name", "wrong-port"])
def test_false_answers(name: str) -> None:
    query = bytes(DNS(id=0x1234, rd=1, qd=[DNSQR(qname=f"{name}.lab.test", qtype="A")]))
    (wire,), elsewhere = ZONE.falsehoods(query)
    answer = DNS(wire)
    assert answer.an[0].rdata == servers.FALSE
    assert elsewhere is (name == "wrong-port")
    assert (answer.id == 0x1234) is (name != "wrong-number")
    assert (answer.qd[0].qname == f"{name}.lab.test.".encode()) is (name != "wrong-name")
    assert ask(f"{name}.lab.test", "A").an[0].rdata == "198.51.100.10"


def test_other_names_have_no_false_answers() -> None:
    assert ZONE.falsehoods(bytes(DNS(qd=[DNSQR(qname="www.lab.test")]))) == ([], False)


@pytest.mark.parametrize("query", [b"", bytes(11), bytes(12), struct.pack("!6H", 1, 0x8000, 1, 0, 0, 0) + bytes(5)])
def test_what_is_no_query_gets_no_answer(query: bytes) -> None:
    assert ZONE.answer(query, over_tcp=False) == b""


@pytest.mark.parametrize(
    ("address", "expected"), [("::ffff:10.0.0.1", "10.0.0.1"), ("fd73::2", "fd73::2"), ("10.0.0.1", "10.0.0.1")]
)
def test_readable_addresses(address: str, expected: str) -> None:
    assert readable(address) == expected


def test_tcp_echo_until_the_client_has_finished() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=TcpEcho, args=(theirs, ("", 0), None))
        thread.start()
        ours.sendall(b"once more")
        ours.shutdown(socket.SHUT_WR)
        received = b""
        while len(received) < 9 and (data := ours.recv(64)):
            received += data
        thread.join(5)
        assert received == b"once more"
        assert not thread.is_alive()
