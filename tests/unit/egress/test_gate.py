"""The policy at the tunnel's mouth: the shared table, flows in both directions, and no way around."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.packet import Raw

from tests import egress_cases
from tests.egress_cases import CASES, SITE, Case
from tests.unit.egress.packets import PEER, back, out
from wgvsock.egress.flows import IncomingFlows, Recent
from wgvsock.egress.gate import (
    ECHO_LIFETIME,
    FRAGMENT,
    MAX_DATAGRAMS,
    MAX_ECHOES,
    MAX_REFUSED,
    NO_FLOW,
    UDP_LIFETIME,
    UNREADABLE,
    Gate,
)
from wgvsock.egress.names import Pin, Pins
from wgvsock.egress.policy import Policy
from wgvsock.egress.settings import PolicySettings
from wgvsock.settings import parse

VERSIONS = pytest.mark.parametrize("version", [4, 6])
ALLOWED = {4: "203.0.113.10", 6: "2001:db8::10"}
RULES = """
    default = "deny"
    allow = [
        {network = "203.0.113.10/32", ports = [443], protocol = "any"},
        {network = "203.0.113.10/32", protocol = "icmp"},
        {network = "2001:db8::10/128", ports = [443], protocol = "any"},
    ]
    deny = [{network = "203.0.113.64/26"}]
"""


class Place:
    """A gate, and what was passed to the kernel."""

    def __init__(self, rules: str = RULES, *, headroom: int = 0) -> None:
        self.told: list[bytes] = []
        self.headroom = headroom
        self.now = 0.0
        policy = parse(PolicySettings, rules).policy()
        self.gate = Gate(policy, lambda packet: self.told.append(bytes(packet)), headroom)
        self.gate.place(SITE)

    def passes(self, ip: memoryview) -> bool:
        return self.gate.passes(memoryview(bytes(self.headroom) + ip), self.now)

    def hears(self, *packets: memoryview) -> None:
        for ip in packets:
            self.gate.hears(memoryview(bytes(self.headroom) + ip), self.now)

    @property
    def denied(self) -> dict[str, int]:
        return dict(self.gate.snapshot().denied)


@pytest.mark.parametrize("case", [case for case in CASES if case.policy != "names"], ids=str)
@pytest.mark.parametrize("headroom", [0, 10])
def test_the_table_that_the_relay_s_filter_is_tested_by(case: Case, headroom: int) -> None:
    place = Place(egress_cases.POLICIES[case.policy], headroom=headroom)
    for _ in range(2):
        assert place.passes(memoryview(egress_cases.raw(case.packet))) == case.allowed
    assert place.denied == ({} if case.allowed else {case.by: 2})


@pytest.mark.parametrize("case", [case for case in CASES if case.policy == "names"], ids=str)
def test_a_rule_for_a_name_lets_nothing_pass_here(case: Case) -> None:
    assert not Place(egress_cases.POLICIES["names"]).passes(memoryview(egress_cases.raw(case.packet)))


@VERSIONS
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_what_follows_the_first_packet_passes_without_being_judged(
    version: int, layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place()
    packet = out(layer(sport=40000, dport=443), version=version, to=ALLOWED[version])
    assert place.passes(packet)
    monkeypatch.setattr(place.gate, "_judge", None)  # which would be called
    assert place.passes(packet)
    assert place.passes(out(layer(sport=40000, dport=443) / Raw(bytes(60_000)), version=version, to=ALLOWED[version]))


def test_a_flow_is_of_one_protocol() -> None:
    place = Place(RULES.replace('"any"', '"tcp"'))
    assert place.passes(out(TCP(sport=40000, dport=443), to=ALLOWED[4]))
    assert not place.passes(out(UDP(sport=40000, dport=443), to=ALLOWED[4]))
    assert not place.passes(out(Raw(struct.pack("!HH", 40000, 443)), to=ALLOWED[4], proto=132))


def test_a_flow_that_was_forgotten_is_judged_again() -> None:
    place = Place()
    place.gate._tcp = Recent(8)
    for port in range(40000, 40100):
        assert place.passes(out(TCP(sport=port, dport=443, flags="S"), to=ALLOWED[4]))
    assert len(place.gate._tcp.keys) == 8
    assert place.passes(out(TCP(sport=40000, dport=443, flags="PA") / Raw(b"later"), to=ALLOWED[4]))


def test_another_place_is_another_policy() -> None:
    place = Place('default = "deny"')
    query = out(UDP(sport=40000, dport=53), to="10.100.0.10")
    assert place.passes(query)
    place.gate.place(SITE)
    assert place.passes(query)
    place.gate.place(replace(SITE, resolvers=frozenset({ip_address("10.100.0.11")})))
    assert not place.passes(query)


# Refusals.


@VERSIONS
@pytest.mark.parametrize("headroom", [0, 10])
def test_the_sender_is_told_at_once(version: int, headroom: int) -> None:
    place = Place(headroom=headroom)
    assert not place.passes(out(TCP(sport=40000, dport=443, flags="S"), version=version))
    (told,) = place.told
    assert told[:headroom] == bytes(headroom)
    answer = (IP if version == 4 else IPv6)(told[headroom:])
    assert (answer.src, answer[TCP].dport, answer[TCP].flags) == (PEER[version], 40000, "RA")


def test_what_was_refused_is_remembered_by_destination() -> None:
    place = Place()
    for at in range(3):
        place.now = float(at)
        place.passes(out(TCP(sport=40000 + at, dport=443)))
    place.now = 9.0
    place.passes(out(UDP(dport=53), to="203.0.113.70"))
    place.passes(out(ICMP(type=8), to="203.0.113.70"))
    ping, query, connection = place.gate.snapshot().refused
    assert (str(connection.destination), connection.protocol, connection.port) == (PEER[4], 6, 443)
    assert (connection.by, connection.count, connection.at) == ("default", 3, 2.0)
    assert (str(query.destination), query.protocol, query.port, query.by) == ("203.0.113.70", 17, 53, "deny 1")
    assert (ping.protocol, ping.port) == (1, 8)
    assert place.denied == {"default": 3, "deny 1": 2}


def test_no_more_than_so_many_destinations_are_remembered() -> None:
    place = Place()
    for port in range(1000, 1000 + 3 * MAX_REFUSED):
        place.passes(out(TCP(dport=port)))
        place.passes(out(TCP(dport=1000)))
    ports = {refused.port for refused in place.gate.snapshot().refused}
    assert len(ports) == MAX_REFUSED
    assert 1000 in ports  # the one that is refused again and again
    assert 1001 not in ports


def test_what_the_kernel_asks_everybody_is_counted_and_not_listed() -> None:
    place = Place()
    assert not place.passes(out(ICMPv6ND_RS(), version=6, to="ff02::2"))
    assert place.denied == {"protocol": 1}
    assert (place.gate.snapshot().refused, place.told) == ((), [])


@pytest.mark.parametrize("headroom", [0, 10])
def test_no_packet_is_no_packet(headroom: int) -> None:
    place = Place("", headroom=headroom)
    garbage = [b"", b"\x45", b"\x45" + bytes(18), b"\x60" + bytes(20), bytes(60), b"\xff" * 1500]
    for ip in garbage:
        assert not place.passes(memoryview(ip))
    assert place.denied == {UNREADABLE: len(garbage)}
    assert place.told == []
    place.hears(*(memoryview(ip) for ip in garbage))
    assert place.gate.snapshot().incoming == 0


# Flows that begin outside.


@VERSIONS
def test_a_published_port_answers_whatever_the_policy_says(version: int) -> None:
    place = Place('default = "deny"')
    syn = back(TCP(sport=5000, dport=80, flags="S"), version=version)
    answer = out(TCP(sport=80, dport=5000, flags="SA"), version=version)
    assert not place.passes(answer)
    place.hears(syn)
    assert place.passes(answer)
    assert place.passes(out(TCP(sport=80, dport=5000, flags="PA") / Raw(bytes(1000)), version=version))
    assert place.passes(out(TCP(sport=80, dport=5000, flags="RA"), version=version))
    assert not place.passes(out(TCP(sport=81, dport=5000, flags="SA"), version=version))
    place.now = 1e6  # a connection may be silent for days
    assert place.passes(answer)
    assert place.told == []


@VERSIONS
def test_a_datagram_is_answered_for_so_long(version: int) -> None:
    place = Place('default = "deny"')
    place.hears(back(UDP(sport=5000, dport=53), version=version))
    answer = out(UDP(sport=53, dport=5000), version=version)
    assert place.passes(answer)
    place.now = UDP_LIFETIME
    assert place.passes(answer)
    place.now += UDP_LIFETIME + 1
    assert not place.passes(answer)
    place.hears(back(UDP(sport=5000, dport=53), version=version))
    assert place.passes(answer)


def test_a_client_with_a_link_local_address_is_answered() -> None:
    place = Place()
    place.hears(back(TCP(sport=5000, dport=80, flags="S"), of="169.254.1.1"))
    assert place.passes(out(TCP(sport=80, dport=5000, flags="SA"), to="169.254.1.1"))
    assert not place.passes(out(TCP(sport=40000, dport=80, flags="S"), to="169.254.1.1"))


@VERSIONS
def test_a_forged_packet_from_outside_opens_no_connection(version: int) -> None:
    """Whatever a relay claims: a connection from the enclave begins with a SYN, and that is judged."""
    place = Place()
    for flags in ("S", "SA", "A", "R"):
        place.hears(back(TCP(sport=443, dport=40000, flags=flags), version=version))
        assert not place.passes(out(TCP(sport=40000, dport=443, flags="S"), version=version))
    assert place.denied == {"default": 4}


@VERSIONS
def test_replies_to_flows_of_ours_are_no_flows_from_outside(version: int) -> None:
    place = Place()
    assert place.passes(out(UDP(sport=40000, dport=443), version=version, to=ALLOWED[version]))
    place.hears(back(UDP(sport=443, dport=40000), version=version, of=ALLOWED[version]))
    place.hears(back(UDP(sport=443, dport=40000), version=version, of=ALLOWED[version], **odd(version)))
    assert place.gate.snapshot().incoming == 0


def odd(version: int) -> dict[str, Any]:
    """What makes a first fragment, which does not have the form that one look-up compares."""
    return {"flags": "MF"} if version == 4 else {}


@pytest.mark.parametrize(
    ("request_of_theirs", "reply", "version"),
    [(ICMP(type=8, id=7), ICMP(type=0, id=7), 4), (ICMPv6EchoRequest(id=7), ICMPv6EchoReply(id=7), 6)],
)
def test_a_ping_from_outside_is_answered(request_of_theirs: Any, reply: Any, version: int) -> None:
    place = Place('default = "deny"')
    answer = out(reply, version=version)
    assert not place.passes(answer)
    place.hears(back(request_of_theirs, version=version))
    place.hears(back(request_of_theirs, version=version))
    assert place.passes(answer)
    reply.id = 8
    assert not place.passes(out(reply, version=version))
    place.now = ECHO_LIFETIME + 1
    assert not place.passes(answer)
    assert place.denied == {NO_FLOW: 3}
    assert place.told == []


def test_pings_from_outside_are_bounded() -> None:
    place = Place()
    for number in range(4 * MAX_ECHOES):
        place.hears(back(ICMP(type=8, id=number)))
    assert len(place.gate._echoes) == MAX_ECHOES


def test_a_flood_from_outside_is_bounded_and_costs_no_other_flow() -> None:
    place = Place()
    place.gate._incoming[17] = IncomingFlows(UDP_LIFETIME, 64)
    assert place.passes(out(UDP(sport=40000, dport=443), to=ALLOWED[4]))
    for number in range(1000):
        place.now = float(number)
        place.hears(back(UDP(sport=1000 + number, dport=53)), back(UDP(sport=999, dport=53)))
    assert place.gate.snapshot().incoming == 64
    assert place.passes(out(UDP(sport=53, dport=999)))
    assert place.passes(out(UDP(sport=40000, dport=443), to=ALLOWED[4]))


@pytest.mark.parametrize(
    "heard",
    [
        back(ICMP(type=0, id=7)),
        back(ICMP(type=3, code=3) / Raw(bytes(28))),
        back(Raw(bytes(8)), proto=47),
        back(UDP(sport=1, dport=2), frag=4),
        back(Raw(bytes(3)), proto=17),
    ],
)
def test_what_begins_no_flow(heard: memoryview) -> None:
    place = Place()
    place.hears(heard)
    assert place.gate.snapshot().incoming == 0
    assert len(place.gate._echoes) == 0


def test_extension_headers_hide_no_flow_from_outside() -> None:
    place = Place()
    for _ in range(2):
        place.hears(back(IPv6ExtHdrHopByHop() / UDP(sport=5000, dport=53), version=6))
    assert place.gate.snapshot().incoming == 1
    assert place.passes(out(UDP(sport=53, dport=5000), version=6))


# ICMP errors.


@VERSIONS
@pytest.mark.parametrize("ours", [True, False], ids=["of a flow of ours", "of a flow from outside"])
def test_an_error_about_a_known_flow_passes(version: int, ours: bool) -> None:
    place = Place()
    peer = ALLOWED[version]
    came = back(UDP(sport=443, dport=40000), version=version, of=peer)
    error = ICMP(type=3, code=3) if version == 4 else ICMPv6DestUnreach(code=4)
    ip = out(error / Raw(bytes(came)), version=version, to=peer)
    assert not place.passes(ip)
    if ours:
        assert place.passes(out(UDP(sport=40000, dport=443), version=version, to=peer))
    else:
        place.hears(came)
    assert place.passes(ip)
    assert not place.passes(out(error / Raw(bytes(came)), version=version))  # told to somebody else
    assert place.denied == {NO_FLOW: 2}
    assert place.told == []


def test_other_messages_are_no_way_out() -> None:
    place = Place()
    place.hears(back(UDP(sport=443, dport=40000)))
    for kind in (4, 5, 9, 13, 17):
        assert not place.passes(out(ICMP(type=kind) / Raw(bytes(back(UDP(sport=443, dport=40000))))))
    assert place.denied == {"protocol": 5}


# Fragments.


def pieces(version: int, layer: Any, number: int = 5, **fields: Any) -> list[memoryview]:
    ip = out(layer / Raw(bytes(4000)), version=version, **fields)
    if version == 4:
        return [memoryview(bytes(piece)) for piece in fragment(IP(bytes(ip), id=number), 1480)]
    whole = IPv6(bytes(ip)[:40]) / IPv6ExtHdrFragment(id=number) / layer / Raw(bytes(4000))
    del whole[IPv6].plen
    whole[IPv6].nh = 44
    return [memoryview(bytes(piece)) for piece in fragment6(whole, 1400)]


@VERSIONS
def test_a_fragment_passes_with_its_first(version: int) -> None:
    place = Place()
    first, *later = pieces(version, UDP(sport=40000, dport=443), to=ALLOWED[version])
    assert not place.passes(later[0])
    assert place.passes(first)
    place.gate.place(SITE)  # which it is already, as after each attestation
    assert all(place.passes(piece) for piece in later)
    assert not place.passes(pieces(version, UDP(sport=40000, dport=443), 6, to=ALLOWED[version])[1])
    assert place.denied == {FRAGMENT: 2}
    assert place.told == []


@VERSIONS
def test_a_first_fragment_that_is_refused_takes_the_others_with_it(version: int) -> None:
    place = Place()
    first, *later = pieces(version, UDP(sport=40000, dport=53))
    assert not any(place.passes(piece) for piece in (first, *later))
    assert place.denied == {"default": 1, FRAGMENT: len(later)}
    assert len(place.told) == 1


def test_ports_that_stand_in_a_later_fragment_are_none() -> None:
    """Its payload begins where a whole datagram has its ports."""
    place = Place()
    flow = out(UDP(sport=40000, dport=443), to=ALLOWED[4])
    assert place.passes(flow)
    forged = bytearray(flow)
    forged[6:8] = (100).to_bytes(2, "big")
    assert not place.passes(memoryview(forged))
    assert place.denied == {FRAGMENT: 1}


def test_a_large_answer_passes_in_fragments() -> None:
    place = Place('default = "deny"')
    place.hears(*pieces_in(UDP(sport=5000, dport=53)))
    assert all(place.passes(piece) for piece in pieces(4, UDP(sport=53, dport=5000)))


def pieces_in(layer: Any) -> list[memoryview]:
    return [memoryview(bytes(piece)) for piece in fragment(IP(bytes(back(layer / Raw(bytes(4000))))), 1480)]


def test_datagrams_whose_fragments_may_come_are_bounded() -> None:
    place = Place()
    for number in range(3 * MAX_DATAGRAMS):
        assert place.passes(pieces(4, UDP(sport=40000, dport=443), number, to=ALLOWED[4])[0])
    assert len(place.gate._datagrams.keys) == MAX_DATAGRAMS


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=80), st.sampled_from([b"", b"\x45", b"\x60"])), max_size=8))
def test_no_bytes_raise(packets: list[tuple[bool, bytes, bytes]]) -> None:
    place = Place()
    for comes_in, data, first in packets:
        if comes_in:
            place.hears(memoryview(first + data))
        else:
            place.passes(memoryview(first + data))


_HOSTS = st.sampled_from(["203.0.113.10", "203.0.113.11", "169.254.169.254", "10.100.0.10"])
_PORTS = st.sampled_from([53, 443, 40000])


@given(st.lists(st.tuples(st.booleans(), _HOSTS, _PORTS, _PORTS, st.sampled_from(["S", "SA", "A", "R"])), max_size=12))
def test_no_sequence_of_packets_lets_a_connection_begin_that_no_rule_names(
    packets: list[tuple[bool, str, int, int, str]],
) -> None:
    place = Place()
    for comes_in, host, here, there, flags in packets:
        if comes_in:
            place.hears(back(TCP(sport=there, dport=here, flags=flags), of=host))
            continue
        passed = place.passes(out(TCP(sport=here, dport=there, flags=flags), to=host))
        if flags == "S":
            assert passed == ((host, there) in {("203.0.113.10", 443), ("10.100.0.10", 53)})


def test_without_a_place_there_is_neither_relay_nor_name_server() -> None:
    gate = Gate(Policy(allows_by_default=False), lambda packet: None)
    assert not gate.passes(out(UDP(dport=53), to="10.100.0.10"), 0)


NAMED = '[[allow]]\nname = "www.example.com"\nprotocol = "any"\n'


class NamedPlace(Place):
    """A gate of a relay: its policy has a name, which has an address for a limited time."""

    def __init__(self, crowd: Callable[[float], str | None] = lambda _: None) -> None:
        super().__init__()
        self.pins = Pins()
        policy = parse(PolicySettings, f'default = "deny"\n{NAMED}').policy()
        self.gate = Gate(policy, lambda packet: self.told.append(bytes(packet)), pins=self.pins, crowd=crowd)
        self.gate.place(SITE)
        self.pins.adopt([Pin("www.example.com", ip_address(ALLOWED[4]), until=100.0)])


def test_a_names_address_is_open_as_long_as_it_has_it() -> None:
    place = NamedPlace()
    syn = out(TCP(sport=5000, dport=443, flags="S"), to=ALLOWED[4])
    data = out(TCP(sport=5000, dport=443, flags="A"), to=ALLOWED[4])
    assert place.passes(syn)
    place.now = 101.0
    assert place.passes(data), "a connection outlives the pin of its name"
    assert not place.passes(syn), "a new one does not begin after it"
    assert place.gate.snapshot().allowed == {"allow 1": 1}


def test_a_datagram_is_judged_until_it_was_answered() -> None:
    place = NamedPlace()
    question = out(UDP(sport=5000, dport=443), to=ALLOWED[4])
    assert place.passes(question)
    place.now = 101.0
    assert not place.passes(question)
    place.now = 99.0
    assert place.passes(question)
    place.hears(back(UDP(sport=443, dport=5000), of=ALLOWED[4]))
    place.now = 101.0
    assert place.passes(question), "somebody talks with it"
    place.now += UDP_LIFETIME + 1
    assert not place.passes(question)


def test_too_many_flows_are_dropped_and_nobody_is_told() -> None:
    place = NamedPlace(lambda now: "too many" if now > 1 else None)
    assert place.passes(out(TCP(sport=5000, dport=443, flags="S"), to=ALLOWED[4]))
    place.now = 2.0
    assert not place.passes(out(TCP(sport=5001, dport=443, flags="S"), to=ALLOWED[4]))
    assert (place.denied, place.told) == ({"too many": 1}, [])


def test_another_policy_judges_what_passed_before() -> None:
    place = Place()
    data = out(TCP(sport=5000, dport=443, flags="A"), to=ALLOWED[4])
    assert place.passes(data)
    place.gate.adopt(parse(PolicySettings, 'default = "deny"').policy())
    assert not place.passes(data)


def test_a_gate_that_forgets_knows_nobody_from_outside() -> None:
    place = Place()
    place.hears(back(UDP(sport=9, dport=7), of="192.0.2.99"))
    answer = out(UDP(sport=7, dport=9), to="192.0.2.99")
    assert place.passes(answer)
    place.gate.forget()
    assert not place.passes(answer)


def test_what_may_pass_can_be_refused_all_the_same() -> None:
    place = Place(headroom=10)
    syn = bytes(10) + out(TCP(sport=5000, dport=443, flags="S"), to=ALLOWED[4])
    place.gate.refuse(memoryview(syn), "relay machine", 1.0)
    assert place.denied == {"relay machine": 1}
    assert IP(place.told[0][10:])[TCP].flags == "RA"
    place.gate.refuse(memoryview(bytes(12)), "relay machine", 1.0)
    assert len(place.told) == 1
