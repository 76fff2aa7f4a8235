from __future__ import annotations

import socket
import struct
import threading

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRROPT

from lab import servers
from lab.servers import MANY, TcpEcho, Zone, readable

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
