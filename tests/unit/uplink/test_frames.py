"""Ethernet around IP packets, compared with Scapy's reading of it."""

from __future__ import annotations

from ipaddress import ip_address

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether

from wgvsock.uplink import frames

ENCLAVE4, ENCLAVE6 = ip_address("10.73.0.2"), ip_address("fd73::2")
OWN = frozenset({ENCLAVE4.packed, ENCLAVE6.packed})
STATION = "02:77:67:76:73:02"


def test_an_ipv4_address_is_told_by_a_gratuitous_arp() -> None:
    arp = Ether(frames.introduction(ENCLAVE4))[ARP]
    assert (arp.op, arp.psrc, arp.pdst, arp.hwsrc) == (1, "10.73.0.2", "10.73.0.2", STATION)


def test_an_ipv6_address_is_told_by_an_advertisement_with_a_right_checksum() -> None:
    packet = Ether(frames.introduction(ENCLAVE6))
    advertisement = packet[ICMPv6ND_NA]
    assert (advertisement.tgt, packet[IPv6].dst, packet[IPv6].hlim) == ("fd73::2", "ff02::1", 255)
    rebuilt = packet.copy()
    del rebuilt[ICMPv6ND_NA].cksum
    assert Ether(bytes(rebuilt))[ICMPv6ND_NA].cksum == advertisement.cksum


def test_who_asks_for_the_enclave_is_answered() -> None:
    request = bytes(Ether() / ARP(op=1, psrc="10.73.0.1", hwsrc="52:55:00:00:00:01", pdst="10.73.0.2"))
    told = frames.answer(request, OWN)
    assert told is not None
    arp = Ether(told)[ARP]
    assert (arp.op, arp.psrc, arp.hwsrc, arp.pdst) == (2, "10.73.0.2", STATION, "10.73.0.1")

    solicitation = bytes(Ether() / IPv6(src="fe80::2", dst="ff02::1:ff00:2") / ICMPv6ND_NS(tgt="fd73::2"))
    told = frames.answer(solicitation, OWN)
    assert told is not None
    assert (Ether(told)[ICMPv6ND_NA].tgt, Ether(told)[IPv6].dst) == ("fd73::2", "fe80::2")


def test_who_asks_for_somebody_else_is_not() -> None:
    assert frames.answer(bytes(Ether() / ARP(op=1, pdst="10.73.0.9")), OWN) is None
    assert frames.answer(bytes(Ether() / ARP(op=2, pdst="10.73.0.2")), OWN) is None
    assert frames.answer(bytes(Ether() / IPv6() / ICMPv6ND_NS(tgt="fd73::9")), OWN) is None
    assert frames.answer(bytes(Ether() / IPv6() / ICMPv6ND_RA()), OWN) is None


def test_a_cut_off_question_is_none() -> None:
    for whole in (bytes(Ether() / ARP(pdst="10.73.0.2")), bytes(Ether() / IPv6() / ICMPv6ND_NS(tgt="fd73::2"))):
        for length in range(14, 42 if whole[12:14] == frames.ARP else 78):
            assert frames.answer(whole[:length], OWN) is None


def test_an_echo_is_no_neighbour_discovery() -> None:
    assert frames.is_neighbour_discovery(bytes(Ether() / IPv6() / ICMPv6ND_RA()))
    assert not frames.is_neighbour_discovery(frames.TO_ROUTER[6] + bytes(6) + b"\x3a\x40" + bytes(32) + b"\x80")
